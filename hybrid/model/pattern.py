"""The interleave pattern: `"LLLLLG"` and a depth -> one `LayerSpec` a layer -> a `LayerPlan`.

A plan is computed once. Parameters, scans, caches, FLOPs, bytes and the picture are folds over
it, and no other file decides what a layer is or which layers run together.

    LLLLLG at 14 layers, last layer forced global:

      segment 0   LLLLLG  × 2 repetitions   scanned: leaves are stacked [2, ...]
      segment 1   LG      × 1               the tail, through the same code

The plan is cut at the ends of periods and where layers begin to reuse the keys and values of
others; runs of equal pieces are one segment. A piece that holds a donor differs from its
neighbours, so it becomes a segment by itself and its keys and values leave it by name.

Read next: `stack.py`, which runs a plan.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig

LOCAL, GLOBAL = "L", "G"
KIND_NAMES = {LOCAL: "local", GLOBAL: "global"}
LATER_LETTERS = {
    "S": "Longformer",
    "B": "BigBird",
    "M": "Mamba-2",
    "W": "RWKV-7",
    "R": "RG-LRU",
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position encoding of a layer: `fraction` of the pairs turn, at base `theta`.

    `factor` divides all frequencies (linear scaling).
    """

    theta: float
    fraction: float = 1.0
    factor: float = 1.0


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
      letter: the token mixer.
      window_size: tokens seen, the own included; None sees all earlier ones.
      num_heads, num_kv_heads, head_dim: geometry of the heads.
      rope: rotary encoding.
      unified_kv: one projection serves keys and values.
      ffn_dim: width of the feed-forward.
      experts: experts beside it, or None.
      donor: index of the layer whose keys and values this one reuses; None: it owns its own.
      donates: whether later layers reuse this layer's keys and values.
    """

    letter: str
    window_size: int | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    unified_kv: bool
    ffn_dim: int
    experts: Experts | None = None
    donor: int | None = None
    donates: bool = False

    @property
    def kind(self) -> str:
        """`local` or `global`."""
        return KIND_NAMES[self.letter]

    @property
    def rope_key(self) -> str:
        """Names the layer's angles: equal for all layers whose heads turn alike."""
        return f"{self.rope}/{self.head_dim}"

    @property
    def owns_kv(self) -> bool:
        """Whether the layer computes (and caches) keys and values of its own."""
        return self.donor is None


@dataclasses.dataclass(frozen=True)
class Segment:
    """`repetitions` equal runs of `specs`, starting at layer `first_layer`."""

    specs: tuple[LayerSpec, ...]
    repetitions: int
    first_layer: int

    @property
    def num_layers(self) -> int:
        """Layers in all repetitions together."""
        return len(self.specs) * self.repetitions

    @property
    def letters(self) -> str:
        """The letters of one repetition."""
        return "".join(spec.letter for spec in self.specs)


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a layer's parameters stand: `params[segment][slot]`, row `repetition`."""

    segment: int
    slot: int
    repetition: int


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

    @property
    def letters(self) -> str:
        """The letter of each layer, in order of depth."""
        return "".join(spec.letter for spec in self.layers())

    @property
    def reach(self) -> int | None:
        """Tokens back, itself counted, that the whole stack can see; None with a global layer.

        Each local layer carries what it sees its window further: m layers reach m·(w - 1) + 1.
        """
        reach = 1
        for spec in self.layers():
            if spec.window_size is None:
                return None
            reach += spec.window_size - 1
        return reach

    def unrolled(self) -> "LayerPlan":
        """The same layers with every repetition a segment of its own: nothing is scanned."""
        return LayerPlan(
            tuple(
                Segment(segment.specs, 1, segment.first_layer + r * len(segment.specs))
                for segment in self.segments
                for r in range(segment.repetitions)
            )
        )

    def locate(self, layer: int) -> Location:
        """The bijection from depth to parameters, used by everything that names layers."""
        for index, segment in enumerate(self.segments):
            inside = layer - segment.first_layer
            if 0 <= inside < segment.num_layers:
                repetition, slot = divmod(inside, len(segment.specs))
                return Location(index, slot, repetition)
        raise IndexError(f"layer {layer} of {self.num_layers}")

    def layer_at(self, location: Location) -> int:
        """The depth of a location: the inverse of `locate`."""
        segment = self.segments[location.segment]
        return segment.first_layer + location.repetition * len(segment.specs) + location.slot


# --- From a config to a plan -----------------------------------------------------------------


def plan_layers(config: ModelConfig) -> LayerPlan:
    """The plan of a model.  Raises: ConfigError for a pattern that can't be had."""
    letters = layer_letters(config.pattern, config.num_layers, config.last_layer)
    windows = config.window_sizes or (config.window_size,) * len(config.pattern)
    specs = tuple(
        layer_spec(config, letter, windows[layer % len(windows)])
        for layer, letter in enumerate(letters)
    )
    return segmented(share_kv(specs, config), period=len(config.pattern))


def layer_letters(pattern: str, num_layers: int, last_layer: str = "require_global") -> str:
    """The letter of each layer; the only place where the last-layer rule acts.

    >>> layer_letters("LLLLLG", 8, "force_global")
    'LLLLLGLG'
    """
    check_pattern(pattern)
    letters = (pattern * -(-num_layers // len(pattern)))[:num_layers]
    if letters[-1] == GLOBAL or last_layer == "any":
        return letters
    if last_layer == "force_global":
        return letters[:-1] + GLOBAL
    if GLOBAL not in pattern:
        raise ConfigError(
            "pattern",
            "has no global layer, which model.last_layer=require_global asks for at the end",
            pattern,
            "set model.last_layer to any, or to force_global",
        )
    raise ConfigError(
        "num_layers",
        f"leaves a local layer last under pattern {pattern}",
        num_layers,
        f"depths that end global: {_fitting_depths(pattern, num_layers)}; "
        "or set model.last_layer to force_global or any",
    )


def check_pattern(pattern: str) -> None:
    """Raises: ConfigError for an empty pattern or a letter without a mixer."""
    if not pattern:
        raise ConfigError("pattern", "is empty", "''", "letters L (local) and G (global)")
    for letter in pattern:
        if letter in LATER_LETTERS:
            problem = f"letter {letter} ({LATER_LETTERS[letter]}) is not built yet"
            raise ConfigError("pattern", problem, pattern, "letters L (local) and G (global)")
        if letter not in KIND_NAMES:
            raise ConfigError(
                "pattern",
                f"has an unknown letter {letter!r}",
                pattern,
                "letters L (local) and G (global)",
            )


def _fitting_depths(pattern: str, near: int) -> str:
    ends_global = [
        depth
        for depth in range(1, near + 2 * len(pattern))
        if pattern[(depth - 1) % len(pattern)] == GLOBAL
    ]
    return ", ".join(map(str, sorted(sorted(ends_global, key=lambda depth: abs(depth - near))[:4])))


def layer_spec(config: ModelConfig, letter: str, window_size: int) -> LayerSpec:
    """The spec of one layer of `config`."""
    is_local = letter == LOCAL
    wide = config.global_rope_theta, config.global_rope_fraction, config.global_rope_factor
    kv_heads, head_dim = config.num_kv_heads, config.head_dim
    if not is_local:
        kv_heads = config.num_global_kv_heads or kv_heads
        head_dim = config.global_head_dim or head_dim
    experts = Experts(config.num_experts, config.num_active_experts, config.expert_dim)
    return LayerSpec(
        letter=letter,
        window_size=window_size if is_local else None,
        num_heads=config.num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=Rope(config.rope_theta) if is_local else Rope(*wide),
        unified_kv=config.unified_kv and not is_local,
        ffn_dim=config.ffn_dim,
        experts=experts if config.num_experts else None,
    )


def share_kv(specs: tuple[LayerSpec, ...], config: ModelConfig) -> tuple[LayerSpec, ...]:
    """`specs` with the last `num_kv_shared_layers` reusing the last owner of their kind.

    Source: Gemma 3n and 4 (E2B, E4B), "KV sharing"; the idea of 2410.14442.
    """
    owners = len(specs) - config.num_kv_shared_layers
    last = {spec.letter: layer for layer, spec in enumerate(specs[:owners])}
    result = list(specs)
    for layer in range(owners, len(specs)):
        letter = specs[layer].letter
        if letter not in last:
            problem = f"leaves no {KIND_NAMES[letter]} layer that owns its keys and values"
            raise ConfigError("num_kv_shared_layers", problem, config.num_kv_shared_layers)
        donor, width = last[letter], config.kv_shared_ffn_dim or config.ffn_dim
        result[layer] = dataclasses.replace(specs[layer], donor=donor, ffn_dim=width)
        result[donor] = dataclasses.replace(result[donor], donates=True)
    return tuple(result)


def segmented(specs: tuple[LayerSpec, ...], period: int) -> LayerPlan:
    """Cuts a list of specs into segments: runs of equal pieces, a piece at most one period long."""
    reusing = [layer for layer, spec in enumerate(specs) if not spec.owns_kv]
    cuts = {*range(0, len(specs), period), *reusing[:1], len(specs)}
    bounds = sorted(cuts)
    segments: list[Segment] = []
    for start, end in itertools.pairwise(bounds):
        piece = specs[start:end]
        if segments and segments[-1].specs == piece:
            last = segments[-1]
            segments[-1] = dataclasses.replace(last, repetitions=last.repetitions + 1)
        else:
            segments.append(Segment(piece, 1, start))
    return LayerPlan(tuple(segments))
