"""The caches of a whole model, allocated from its `LayerPlan`: a value that inference passes on.

    cache = allocate(plan, form, batch)        room for form.capacity tokens a row
    cache = model.extend(..., cache)           tokens go in, up to t at a time
    cache = cache.rewind(tokens)               forget the last `tokens` of each row

A cache is a pytree of arrays and never changes: what was made of it is another one. Whoever jits
a step with the cache donated has used it up; `copy` keeps one.

Read next: `mixers/kv_cache.py`, what one layer keeps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.model.mixers.protocol import CacheFormat
from hybrid.model.pattern import LayerPlan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a model keeps of the tokens it has seen.

    Attributes:
      layers: [segment][run], arrays stacked over the layers.
      length: int32 [b], tokens of each row that count.
      written: int32 [b], the most it has ever held (more than `length` after a rewind).
      plan, form: what it was allocated for.
    """

    layers: dict[int, dict[int, Any]]
    length: Any
    written: Any
    plan: LayerPlan = dataclasses.field(metadata={"static": True})
    form: CacheFormat = dataclasses.field(metadata={"static": True})

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self.length)

    def copy(self) -> "Cache":
        """A snapshot: the same content in arrays of its own."""
        return jax.tree.map(jnp.copy, self)

    def rewind(self, tokens: Any) -> "Cache":
        """The cache without the last `tokens` (a number, or one a row) of each row.

        All rewinds since the furthest token together may reach back as far as the mixers keep
        what they need: local rings by `form.slack` tokens, global layers to the beginning.
        Raises: ValueError for a rewind further than that, or by mixers that have none.
        """
        back = jnp.broadcast_to(jnp.asarray(tokens, jnp.int32), self.length.shape)
        length = self.length - back
        if jnp.any(back < 0) or jnp.any(length < 0):
            held = self.length.tolist()
            raise ValueError(f"rewind: must be from 0 to the rows' lengths {held}, got {tokens}")
        earliest = jnp.zeros_like(self.written)  # the fewest tokens that rows can be cut back to
        for spec in dict.fromkeys(self.plan.layers()):
            if "rewind" in spec.mixer.LACKS:
                reason = spec.mixer.LACKS["rewind"]
                raise ValueError(f"rewind: {spec.about.title} layers can't: {reason}")
            earliest = jnp.maximum(earliest, spec.mixer.earliest_rewind(self.form, self.written))
        if jnp.any(back > 0) and bool(jnp.any(length < earliest)):
            most = (self.length - earliest).tolist()
            raise ValueError(
                f"rewind: {tokens} tokens are further back than local layers keep "
                f"(inference.slack {self.form.slack}; rows can go back {most})"
            )
        return dataclasses.replace(self, length=length)

    def grown(self, capacity: int) -> "Cache":
        """The same content with room for `capacity` tokens."""
        form = dataclasses.replace(self.form, capacity=capacity)
        grow = lambda spec, _, state: spec.mixer.grow(state, self.form, form)  # noqa: E731
        return dataclasses.replace(self, layers=self.plan.map(grow, self.layers), form=form)

    def num_bytes(self) -> dict[str, int]:
        """Bytes of the allocated arrays, by layer kind, and their total."""
        sizes = {"total": 0, "local": 0, "global": 0, "state": 0}

        def add(spec, _, state):
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            sizes[spec.kind] += size
            sizes["total"] += size

        self.plan.map(add, self.layers)
        return sizes


def allocate(plan: LayerPlan, form: CacheFormat, batch: int) -> Cache:
    """An empty cache for `batch` rows."""
    layers = plan.map(lambda spec, depths: spec.mixer.init_state(form, len(depths), batch))
    length, written = (jnp.zeros(batch, jnp.int32) for _ in range(2))
    return Cache(layers, length, written, plan, form)
