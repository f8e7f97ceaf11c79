"""The interleave pattern: `"LLLLLG"` and a depth -> one `LayerSpec` a layer -> a `LayerPlan`.

A plan is computed once. Parameters, scans, caches, FLOPs, bytes and the picture are folds over
it, and no other file decides what a layer is or which layers run together.

    LLLLLG at 14 layers, last layer forced global:

      segment 0   LLLLLG  × 2 repetitions   scanned; its runs are LLLLL and G, whose leaves
                                            are stacked [10, ...] and [2, ...]
      segment 1   LG      × 1               the tail, through the same code

The plan is cut at the ends of periods and where layers begin to read the keys and values of
others, or else would be in one piece with their donor; runs of equal pieces are one segment. A
piece that holds a donor differs from its neighbours, so it becomes a segment by itself and its keys
and values leave it by name.

Read next: `stack.py`, which runs a plan.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.attention import GLOBAL, check_no_window
from hybrid.model.mixers.protocol import Letter, MixerSpec


@dataclasses.dataclass(frozen=True)
class Experts:
    """Experts beside a layer's feed-forward: `num` of width `dim`, `active` of them a token."""

    num: int
    active: int
    dim: int


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """All that makes a layer: equal specs are equal code and stack into one scan.

    Attributes:
      letter: names the token mixer.
      mixer: the mixer's own spec.
      ffn_dim: width of the feed-forward.
      experts: experts beside it, or None.
    """

    letter: str
    mixer: MixerSpec
    ffn_dim: int
    experts: Experts | None = None

    @property
    def about(self) -> Letter:
        """The mixer's row of the table: kind, title, look, citation."""
        return MIXERS[self.letter]

    @property
    def kind(self) -> str:
        """`local`, `global` or `state`."""
        return self.about.kind


class Run(NamedTuple):
    """`length` equal layers that follow each other, the first at `start` of a repetition."""

    spec: LayerSpec
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """`repetitions` equal pieces of layers `specs`, starting at layer `first_layer`."""

    specs: tuple[LayerSpec, ...]
    repetitions: int
    first_layer: int

    @property
    def num_layers(self) -> int:
        """Layers in all repetitions together."""
        return len(self.specs) * self.repetitions

    @property
    def runs(self) -> tuple[Run, ...]:
        """Equal layers of a repetition that follow each other, whose parameters are stacked."""
        runs: list[Run] = []
        for spec, equal in itertools.groupby(self.specs):
            runs.append(Run(spec, sum(run.length for run in runs), len(list(equal))))
        return tuple(runs)

    def depths(self, run: int) -> list[int]:
        """The layers that are stacked in a run, repetition by repetition."""
        _, start, length = self.runs[run]
        firsts = range(self.first_layer, self.first_layer + self.num_layers, len(self.specs))
        return [first + start + i for first in firsts for i in range(length)]

    @property
    def letters(self) -> str:
        """The letters of one repetition."""
        return "".join(spec.letter for spec in self.specs)


class Location(NamedTuple):
    """Where a layer's parameters stand: row `row` of `params[segment][run]`."""

    segment: int
    run: int
    row: int


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The whole depth as segments that scan."""

    segments: tuple[Segment, ...]

    @property
    def num_layers(self) -> int:
        """Depth."""
        return sum(segment.num_layers for segment in self.segments)

    def layers(self) -> Iterator[LayerSpec]:
        """The spec of each layer, in order of depth."""
        for segment in self.segments:
            yield from segment.specs * segment.repetitions

    def map(self, function: Callable[..., Any], *trees: dict) -> dict[int, dict[int, Any]]:
        """{segment: {run: function(spec, depths, ...)}}: the tree of parameters and of states.

        depths: the layers that are stacked there. Of each of `trees`, `function` is given the
        part at the same segment and run.
        """
        return {
            i: {
                j: function(run.spec, segment.depths(j), *(tree[i][j] for tree in trees))
                for j, run in enumerate(segment.runs)
            }
            for i, segment in enumerate(self.segments)
        }

    def mixers(self) -> Iterator[MixerSpec]:
        """The mixer of each layer, in order of depth."""
        return (spec.mixer for spec in self.layers())

    @property
    def letters(self) -> str:
        """The letter of each layer, in order of depth."""
        return "".join(spec.letter for spec in self.layers())

    @property
    def reach(self) -> int | None:
        """Tokens back, itself counted, that the whole stack can see; None with a global layer.

        Each local layer carries what it sees its window further: m layers reach m·(w - 1) + 1.
        Nothing is carried out of a chunk that all other layers' chunks divide.
        """
        seen = [mixer.reach for mixer in self.mixers() if mixer.reach is not None]
        if len(seen) < self.num_layers:
            return None
        largest = max(seen)
        if all(mixer.chunk_size and largest % mixer.chunk_size == 0 for mixer in self.mixers()):
            return largest
        return 1 + sum(each - 1 for each in seen)

    def unrolled(self) -> "LayerPlan":
        """The same layers, each a segment of its own: nothing is scanned or stacked."""
        specs = enumerate(self.layers())
        return LayerPlan(tuple(Segment((spec,), 1, layer) for layer, spec in specs))

    def locate(self, layer: int) -> Location:
        """The bijection from depth to parameters, used by everything that names layers."""
        for index, segment in enumerate(self.segments):
            for run in range(len(segment.runs)):
                depths = segment.depths(run)
                if layer in depths:
                    return Location(index, run, depths.index(layer))
        raise IndexError(f"layer {layer} of {self.num_layers}")


# --- From a config to a plan -----------------------------------------------------------------


def plan_layers(config: ModelConfig) -> LayerPlan:
    """The plan of a model.  Raises: ConfigError for a pattern that can't be built."""
    letters = layer_letters(config.pattern, config.num_layers, config.last_layer)
    period = len(config.pattern)
    sizes = config.num_experts, config.num_active_experts, config.expert_dim
    experts = Experts(*sizes) if config.num_experts else None
    specs = tuple(
        LayerSpec(letter, _mixer(config, letter, layer % period), config.ffn_dim, experts)
        for layer, letter in enumerate(letters)
    )
    return segmented(share_kv(share_first(specs), config), period)


def _mixer(config: ModelConfig, letter: str, slot: int) -> MixerSpec:
    """The mixer of a letter of the period.  Raises: ConfigError."""
    if MIXERS[letter].kind == "state":
        check_no_window(config, slot, letter)
    return MIXERS[letter].spec(config, slot)


def layer_letters(pattern: str, num_layers: int, last_layer: str = "require_global") -> str:
    """The letter of each layer; the only place where the last-layer rule acts.

    >>> layer_letters("LLLLLG", 8, "force_global")
    'LLLLLGLG'
    """
    check_pattern(pattern)
    letters = (pattern * -(-num_layers // len(pattern)))[:num_layers]
    if letters[-1] == GLOBAL.letter or last_layer == "any":
        return letters
    if last_layer == "force_global":
        return letters[:-1] + GLOBAL.letter
    if GLOBAL.letter not in pattern:
        problem = "has no global layer, which model.last_layer=require_global asks for at the end"
        accepted = "set model.last_layer to any, or to force_global"
        raise ConfigError("pattern", problem, pattern, accepted)
    depths = range(1, num_layers + 2 * len(pattern))
    fitting = [depth for depth in depths if pattern[(depth - 1) % len(pattern)] == GLOBAL.letter]
    nearest = sorted(sorted(fitting, key=lambda depth: abs(depth - num_layers))[:4])
    accepted = f"depths that end global: {', '.join(map(str, nearest))}"
    accepted += "; or set model.last_layer to force_global or any"
    raise ConfigError(
        "num_layers", f"leaves a local layer last under pattern {pattern}", num_layers, accepted
    )


def check_pattern(pattern: str) -> None:
    """Raises: ConfigError for an empty pattern or a letter without a mixer."""
    accepted = "letters " + " and ".join(f"{name} ({row.kind})" for name, row in MIXERS.items())
    if not pattern:
        raise ConfigError("pattern", "is empty", "''", accepted)
    for letter in pattern:
        if letter not in MIXERS:
            problem = f"has an unknown letter {letter!r}"
            raise ConfigError("pattern", problem, pattern, accepted)


def share_first(specs: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """`specs` with the first layer of each letter that asks for it the donor of its later ones."""
    first: dict[str, int] = {}
    result = list(specs)
    for layer, spec in enumerate(specs):
        donor = first.setdefault(spec.letter, layer)
        if spec.mixer.reads_first and donor != layer:
            result[layer] = _with_mixer(spec, donor=donor)
            result[donor] = _with_mixer(specs[donor], donates=True)
    return tuple(result)


def _with_mixer(spec: LayerSpec, **changes: Any) -> LayerSpec:
    return dataclasses.replace(spec, mixer=dataclasses.replace(spec.mixer, **changes))


def share_kv(specs: tuple[LayerSpec, ...], config: ModelConfig) -> tuple[LayerSpec, ...]:
    """`specs` with the last `num_kv_shared_layers` reusing the last owner of their kind.

    Source: Gemma 3n and 4 (E2B, E4B), "KV sharing"; the idea of 2410.14442.
    """
    owners = len(specs) - config.num_kv_shared_layers
    last = {spec.letter: layer for layer, spec in enumerate(specs[:owners])}
    result, width = list(specs), config.kv_shared_ffn_dim or config.ffn_dim
    for layer in range(owners, len(specs)):
        spec = specs[layer]
        reason = spec.mixer.LACKS.get("kv_sharing")
        if spec.letter not in last or reason:
            problem = f"leaves no {spec.kind} layer that owns its keys and values"
            problem = f"reaches a layer {spec.letter}, which {reason}" if reason else problem
            raise ConfigError("num_kv_shared_layers", problem, config.num_kv_shared_layers)
        donor = last[spec.letter]
        result[layer] = dataclasses.replace(_with_mixer(spec, donor=donor), ffn_dim=width)
        result[donor] = _with_mixer(result[donor], donates=True)
    return tuple(result)


def segmented(specs: tuple[LayerSpec, ...], period: int) -> LayerPlan:
    """Cuts a list of specs into segments: runs of equal pieces, a piece at most one period long."""
    bounds, is_reading = [0], False
    for layer, spec in enumerate(specs):
        donor = spec.mixer.donor
        begins = donor is not None and (not is_reading or donor >= bounds[-1])
        is_reading = is_reading or begins
        if layer and (begins or layer % period == 0):
            bounds.append(layer)
    pieces = (specs[start:end] for start, end in itertools.pairwise([*bounds, len(specs)]))
    segments: list[Segment] = []
    first_layer = 0
    for piece, equal in itertools.groupby(pieces):
        segments.append(Segment(piece, len(list(equal)), first_layer))
        first_layer += segments[-1].num_layers
    return LayerPlan(tuple(segments))
