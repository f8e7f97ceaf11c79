"""What Longformer and BigBird share: an attention by a `SparseBand`.

Projections, norms, rotary encoding (that of local layers), scale, softcap, sinks and caches are
those of `attention.py`; who sees whom is the band's.

Read next: `longformer.py`, `bigbird.py`.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from hybrid.axes import Query
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.attention import Attention, AttentionSpec
from hybrid.model.mixers.kv import KV
from hybrid.model.mixers.kv_cache import View
from hybrid.model.mixers.protocol import Placement
from hybrid.ops.attention import sparse
from hybrid.ops.sparse_band import SparseBand


@dataclasses.dataclass(frozen=True)
class SparseSpec(AttentionSpec):
    """An attention, and its band."""

    SPLITS_TIME: ClassVar[bool] = False
    LACKS: ClassVar[Mapping[str, str]] = {
        "kv_sharing": "sees other keys than those that a donor keeps for it",
        "export": "has no counterpart in transformers' Gemma",
    }

    band: SparseBand

    def mean_visible_keys(self, context: int) -> float:
        """Keys that a token sees, averaged over positions 0 … context − 1."""
        return float(np.mean(self.band.num_visible(np.arange(context))))

    @property
    def reach(self) -> None:
        """First tokens are seen from everywhere."""
        return None

    def request(self, config: ModelConfig, length: int) -> None:
        """None: there is one implementation."""
        return None

    @abc.abstractmethod
    def shortened(self, num_tokens: int, window_size: int) -> SparseBand:
        """The band with a window of about `window_size` tokens, for a picture of a short row."""

    def picture(self, num_tokens: int, window_size: int) -> np.ndarray:
        """The band of a short row."""
        index = np.arange(num_tokens)
        band = self.shortened(num_tokens, window_size)
        return np.asarray(band.visible(index[:, None], index[None, :]))


class SparseAttention(Attention):
    """Attention whose tokens see what `spec.band` says."""

    spec: SparseSpec

    def attend_to_row(self, q: Query, kv: KV, placement: Placement) -> Query:
        """What queries of whole rows read of them."""
        keys_values = kv.keys_values(placement.shared[self.spec.shared_key])
        segments = placement.segment_ids
        return sparse.attend(q, *keys_values, self.spec.band, segments, **self.scoring())

    def attend_to_cache(self, q: Query, view: View, placement: Placement) -> Query:
        """What queries of new tokens read of the cache and of each other."""
        rows = placement.positions, view.positions
        options = {"in_use": view.in_use, **self.scoring()}
        return sparse.attend_cached(q, view.slots, *rows, self.spec.band, **options)
