"""BigBird, causal (`B`): a window of blocks, the first blocks, and random ones.

    y = softmax(q·kᵀ over the blocks that the query's block i sees)·v · Wo

    i − window_blocks + 1 … i;  0 … num_global_blocks − 1;  num_random_blocks between the two

with blocks of `block_size` tokens from a document's first token on. The random blocks of i are a
function of `seed` and i alone (`hybrid/ops/sparse_band.py`): those of all heads and layers are
alike, where the paper draws for each anew. The first blocks see no more than causality lets them,
so they need nothing of their own.

A cache keeps all keys and values, as a global layer's: a later block may draw any of them. A step
of decoding reads only the blocks that its token sees; a longer chunk reads the cache and masks.
Source: BigBird (2007.14062), sec. 2 and app. D.

Read next: `hybrid/ops/attention/sparse.py`, how rows attend.
"""

import dataclasses
from collections.abc import Iterator

from flax import nnx

from hybrid.axes import Query
from hybrid.config import key
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.attention import check_no_window, local_heads
from hybrid.model.mixers.kv_cache import View
from hybrid.model.mixers.protocol import Letter, Look, Placement
from hybrid.model.mixers.sparse_attention import SparseAttention, SparseSpec
from hybrid.ops.attention import sparse
from hybrid.ops.sparse_band import SparseBand


@dataclasses.dataclass(frozen=True)
class BigBirdConfig:
    """Keys under `model.bigbird.`."""

    block_size: int = key(64, "tokens of a block, from a document's first token on", at_least=1)
    window_blocks: int = key(3, "blocks of the window, the token's own counted", at_least=1)
    num_global_blocks: int = key(1, "first blocks, which all tokens see", at_least=0)
    num_random_blocks: int = key(3, "earlier blocks drawn for each block", at_least=0)
    seed: int = key(0, "of the draws", at_least=0, at_most=2**32 - 1)


@dataclasses.dataclass(frozen=True)
class BigBirdSpec(SparseSpec):
    """The BigBird of one layer."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> "BigBird":
        """The module of one layer."""
        return BigBird(self, config, rngs=rngs)

    def sight(self) -> str:
        """What a token sees, in words."""
        band = self.band
        kinds = f"{band.window_blocks} near + {band.num_global_blocks} first"
        return f"blocks of {band.block_size}: {kinds} + {band.num_random_blocks} random"

    def facts(self) -> Iterator[str]:
        """Blocks, heads, work and memory."""
        yield self.sight()
        yield from self.facts_of_heads()
        yield "work O(t·blocks seen)"
        yield "keeps all t tokens"

    def shortened(self, num_tokens: int, window_size: int) -> SparseBand:
        """The same blocks with fewer tokens in each."""
        size = max(1, min(self.band.block_size, window_size // self.band.window_blocks))
        return dataclasses.replace(self.band, block_size=size)


def _spec(config: ModelConfig, slot: int) -> BigBirdSpec:
    check_no_window(config, slot, "B")
    band = SparseBand(**dataclasses.asdict(config.section("bigbird")))
    return BigBirdSpec(window_size=None, band=band, **local_heads(config))


LETTER = Letter(
    letter="B",
    kind="global",
    title="BigBird attention",
    spec=_spec,
    look=Look("#b0367c", "#fbeaf4", ("#d97fb4", "#5e1440"), line_style=(0, (5, 1, 1, 1))),
    citation="BigBird (2007.14062)",
    section=("bigbird", BigBirdConfig),
)


class BigBird(SparseAttention):
    """The BigBird of one layer."""

    def attend_to_cache(self, q: Query, view: View, placement: Placement) -> Query:
        """A step of one token reads the blocks that it sees, where those are not all."""
        band, is_step = self.spec.band, q.shape[1] == 1
        blocks = band.window_blocks + band.num_global_blocks + band.num_random_blocks
        if not is_step or blocks * band.block_size >= view.slots.num_slots:
            return super().attend_to_cache(q, view, placement)
        return sparse.attend_blocks(q, view.slots, placement.positions, band, **self.scoring())
