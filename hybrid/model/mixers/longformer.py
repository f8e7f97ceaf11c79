"""Longformer, causal (`S`): the last `window_size` tokens, and the first ones of the document.

A token at position p of its document sees, with g = num_global_tokens,

    p >= g    tokens p − w + 1 … p and 0 … g − 1, by q, k and v
    p <  g    tokens 0 … p, all of them global, by q, k and v of a second set of projections

    y = softmax(q·kᵀ)·v · Wo

The paper's global tokens attend to all tokens; causality leaves them those before, so only global
tokens need keys and values of the second set, `global_tokens` among the parameters. A packed row
may consist of global tokens alone, so all its tokens go through both sets, and what is not needed
is dropped: of a row that is one document the first g do.

State. A ring of the window and the first g tokens beside it (`kv_cache.py`), and the first g keys
and values of the second set, until all g are there.
Source: Longformer (2004.05150), sec. 3.1.

Read next: `hybrid/ops/attention/sparse.py`, how rows attend.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid.axes import Hidden, Query
from hybrid.config import key
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import kv_cache
from hybrid.model.mixers.attention import (
    AttentionSpec,
    Projections,
    local_heads,
    window_of_slot,
)
from hybrid.model.mixers.kv_cache import Kept
from hybrid.model.mixers.protocol import CacheFormat, LayerState, Letter, Look, Placement
from hybrid.model.mixers.sparse_attention import SparseAttention, SparseSpec
from hybrid.ops import rope
from hybrid.ops.attention import attend, attend_cached, sparse
from hybrid.ops.band import Band
from hybrid.ops.sparse_band import SparseBand

_OF_GLOBALS = "global_"  # before the names of what global tokens keep for each other


@dataclasses.dataclass(frozen=True)
class LongformerConfig:
    """Keys under `model.longformer.`."""

    num_global_tokens: int = key(
        16, "first tokens of a document, which all its tokens see", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class LongformerSpec(SparseSpec):
    """The Longformer of one layer."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> "Longformer":
        """The module of one layer."""
        return Longformer(self, config, rngs=rngs)

    @property
    def num_pinned(self) -> int:
        """The global tokens."""
        return self.band.num_global_blocks

    @property
    def of_globals(self) -> AttentionSpec:
        """The attention of global tokens to each other."""
        heads = self.num_kv_heads, self.head_dim, self.rope, self.unified_kv
        return AttentionSpec(None, *heads, num_heads=self.num_heads)

    def form_of_globals(self, form: CacheFormat) -> CacheFormat:
        """How their keys and values are kept: room for g tokens."""
        return dataclasses.replace(form, capacity=self.num_pinned)

    def init_state(self, form: CacheFormat, repetitions: int, batch: int) -> Kept:
        """Empty arrays [repetitions, b, k, slots, width]."""
        form_of_globals = self.form_of_globals(form)
        second = self.of_globals.init_state(form_of_globals, repetitions, batch)
        return super().init_state(form, repetitions, batch) | _named(second)

    def state_bytes(self, form: CacheFormat) -> int:
        """Bytes of one row's slots of both sets."""
        second = self.of_globals.state_bytes(self.form_of_globals(form))
        return super().state_bytes(form) + second

    def state_bytes_all_global(self, form: CacheFormat) -> int:
        """Bytes of keys and values of the whole context."""
        return self.of_globals.state_bytes_all_global(form)

    def grow(self, state: Kept, form: CacheFormat, larger: CacheFormat) -> Kept:
        """A larger ring."""
        return state | super().grow(_first_set(state), form, larger)

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """As every attention, and the second set for those tokens that need it."""
        projections, mixing = super().flops_per_token(config, context)
        heads = self.num_heads + 2 * self.num_kv_heads
        share = min(1, self.num_pinned / context)
        return projections + share * 2 * config.d_model * self.head_dim * heads, mixing

    def sight(self) -> str:
        """What a token sees, in words."""
        return f"window {self.window_size:,} and the first {self.num_pinned:,}"

    def facts(self) -> Iterator[str]:
        """Window and global tokens, heads, work and memory."""
        yield f"sees {self.window_size} tokens, and the first {self.num_pinned}"
        yield from self.facts_of_heads()
        yield "work O(t·(w + g))"
        yield "keeps w + 2g tokens"

    def shortened(self, num_tokens: int, window_size: int) -> SparseBand:
        """A short window, and a third of it as global tokens."""
        window = min(self.band.window_blocks, window_size)
        return SparseBand(1, window, min(self.num_pinned, max(1, window_size // 3)))


def _spec(config: ModelConfig, slot: int) -> LongformerSpec:
    window = window_of_slot(config, slot, "S")
    band = SparseBand(1, window, config.section("longformer").num_global_tokens)
    return LongformerSpec(window_size=window, band=band, **local_heads(config))


LETTER = Letter(
    letter="S",
    kind="local",
    title="Longformer attention",
    spec=_spec,
    look=Look("#0f8b8d", "#e3f4f4", ("#5cbfc0", "#064446"), line_style=(0, (2, 1))),
    citation="Longformer (2004.05150)",
    section=("longformer", LongformerConfig),
)


# --- The module ------------------------------------------------------------------------------


class Longformer(SparseAttention):
    """The Longformer of one layer."""

    spec: LongformerSpec

    def __init__(self, spec: LongformerSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(spec, config, rngs=rngs)
        self.global_tokens = Projections(spec.of_globals, config, rngs=rngs)

    def mix(self, x: Hidden, placement: Placement, donated, state: LayerState | None):
        """As `Attention.mix`, with the results of global tokens put in."""
        if placement.step is None or state is None:
            out, seen, _ = super().mix(x, placement, donated, None)
            return self._with_globals(out, x, placement), seen, None
        first = state._replace(arrays=_first_set(state.arrays))
        out, seen, kept = super().mix(x, placement, donated, first)
        second = state._replace(arrays=_second_set(state.arrays))
        of_globals, kept_of_globals = self._step_of_globals(x, placement, second)
        is_global = placement.positions < self.spec.num_pinned
        out = jnp.where(is_global[:, :, None, None], of_globals, out)
        return out, seen, (kept or {}) | _named(kept_of_globals)

    def _with_globals(self, out: Query, x: Hidden, placement: Placement) -> Query:
        """`out` of whole rows with the results of global tokens in their places."""
        count, segments = self.spec.num_pinned, placement.segment_ids
        turn = placement.shared[self.spec.shared_key]
        if segments is None:
            first = rope.Rotation(turn.cos[:, :count], turn.sin[:, :count])
            of_globals = self._row_of_globals(x[:, :count], first, None)
            return jnp.concatenate([of_globals, out[:, count:]], axis=1)
        index = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
        is_global = index - sparse.document_starts(segments) < count
        of_globals = self._row_of_globals(x, turn, segments)
        return jnp.where(is_global[:, :, None, None], of_globals, out)

    def _row_of_globals(self, x: Hidden, turn: rope.Rotation, segments) -> Query:
        """What global tokens read of each other; of others, what means nothing."""
        q = self.global_tokens.project_q(x, turn)
        keys_values = self.global_tokens.project_kv(x, turn).keys_values(turn)
        # The first tokens of a document have all earlier ones in a window of their number.
        band = Band.of_row(self.spec.num_pinned, segments)
        return attend(q, *keys_values, band, **self.scoring())

    def _step_of_globals(
        self, x: Hidden, placement: Placement, state: LayerState
    ) -> tuple[Query, Kept]:
        """The same behind a cache, and the second set's arrays with new tokens in them."""
        step, spec = placement.step, self.spec.of_globals
        assert step is not None
        turn = placement.shared[self.spec.shared_key]
        step = dataclasses.replace(step, form=self.spec.form_of_globals(step.form))

        def project(x):
            return self.global_tokens.project_q(x, turn), self.global_tokens.project_kv(x, turn)

        # Most steps hold no global token: then the second set's weights need not be read.
        is_needed = jnp.any(step.length < self.spec.num_pinned)
        nothing = jax.tree.map(
            lambda each: jnp.zeros(each.shape, each.dtype), jax.eval_shape(project, x)
        )
        q, kv = jax.lax.cond(is_needed, project, lambda x: nothing, x)
        view, kept = kv_cache.extend(spec, state, kv, turn, step)
        out = attend_cached(q, view.slots, placement.positions, view.positions, **self.scoring())
        return out, kept


def _named(second: Kept) -> Kept:
    return {_OF_GLOBALS + name: each for name, each in second.items()}


def _first_set(arrays: Kept) -> Kept:
    return {name: each for name, each in arrays.items() if not name.startswith(_OF_GLOBALS)}


def _second_set(arrays: Kept) -> Kept:
    named = (name for name in arrays if name.startswith(_OF_GLOBALS))
    return {name.removeprefix(_OF_GLOBALS): arrays[name] for name in named}
