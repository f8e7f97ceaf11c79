"""The next token from logits: greedy, or drawn after temperature, top-k, top-p and min-p.

Filters act one after the other, in this order, as in transformers:

    logits / temperature, the largest at 0
    top_k   the k largest
    top_p   the fewest of those whose probabilities reach p, renormalised
    min_p   those at least min_p times as likely as the likeliest

Every row draws with a key of its own and the position it draws for, so what a row gets depends
neither on the rows beside it nor on how the prompt was cut.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hybrid.config import ConfigError

_TINY, _HUGE = (float(limit) for limit in (jnp.finfo("float32").tiny, jnp.finfo("float32").max))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
      temperature: 0 takes the likeliest token; else logits are divided by it.
      top_k, top_p, min_p: the filters above; 0, 1 and 0 leave all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        def need(name, is_right, accepted):
            if not is_right:
                raise ConfigError(name, "is out of range", getattr(self, name), accepted)

        need("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or above")
        need("top_k", self.top_k >= 0, "0 (all) or above")
        need("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (all)")
        need("min_p", 0 <= self.min_p <= 1, "0 (all) to 1")

    @property
    def kind(self) -> str:
        """What a compiled loop must be able to do; the numbers themselves are its arguments."""
        if self.temperature == 0:
            return "greedy"
        return "sorted" if self.top_k or self.top_p < 1 else "plain"

    def numbers(self) -> dict[str, jax.Array]:
        """The settings as arguments of a compiled loop."""
        return {
            # Subnormal numbers count as 0 on some devices; beyond either end nothing changes.
            "temperature": jnp.float32(min(max(self.temperature, _TINY), _HUGE)),
            "top_k": jnp.int32(min(self.top_k, jnp.iinfo(jnp.int32).max)),
            "top_p": jnp.float32(self.top_p),
            "min_p": jnp.float32(self.min_p),
        }


def row_keys(seed: jax.typing.ArrayLike, batch: int) -> jax.Array:
    """A key for each row: of (seed, row), or of each row's own seed where there is one a row."""
    seeds = jnp.asarray(seed, jnp.uint32)
    if seeds.ndim:
        return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(seeds)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seeds), row))(jnp.arange(batch))


def sample(
    logits: jax.Array, keys: jax.Array, positions: jax.Array, kind: str, numbers: dict
) -> jax.Array:
    """The next token of each row.

    Args:
      logits: [b, v].  keys: [b], `row_keys`.
      positions: int32 [b], where the token will stand.
      kind, numbers: of a `Sampling`.
    Returns: int32 [b].
    """
    if kind == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filtered(logits, kind, numbers)

    def draw(key, position, logits):
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    return jax.vmap(draw)(keys, positions, kept).astype(jnp.int32)


def filtered(logits: jax.Array, kind: str, numbers: dict) -> jax.Array:
    """[b, v]: the logits after temperature and filters, −∞ where a token is left out.

    The largest is 0: a small temperature then overflows to −∞, which is a probability of 0, and
    never to ∞, of which there would be no softmax.
    """
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / numbers["temperature"].astype(logits.dtype)
    if kind == "sorted":
        lowest = _lowest_kept(logits, numbers["top_k"], numbers["top_p"])
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return jnp.where(logits >= jnp.log(numbers["min_p"]), logits, -jnp.inf)


def _lowest_kept(logits, top_k, top_p):
    """[b, 1]: the smallest logit that top-k and top-p keep."""
    falling = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None, :]
    within_k = (rank < top_k) | (top_k == 0)
    p = jax.nn.softmax(jnp.where(within_k, falling, -jnp.inf), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # the mass of likelier tokens
    kept = within_k & ((before < top_p) | (rank == 0))
    return jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
