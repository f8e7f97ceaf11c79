"""The router of a mixture of experts: which experts a token goes to, and how evenly they are used.

With logits l of a token over e experts, a of them active:

    (1)  p = softmax(l)                           over all experts, at least float32
    (2)  choice = the a largest of p              the lower index first among equals
    (3)  w_j = p_j / Σ_chosen p · scale_j

How evenly is a matter of all tokens of an optimizer step: a layer gives sums, which add up over
micro-batches and devices, and f is formed of the total, once (`training/objective.py`):

    (4)  balance = e · Σ_j f_j·P_j                f_j = share of the choices, P_j = mean of p_j
    (5)  z = mean of logsumexp(l)²

Balance is 1 where all experts are used alike; f counts choices and has no gradient.
Source: Switch (2101.03961), eqs. 4 to 6, with a experts a token; ST-MoE (2202.08906), eq. 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid.axes import Mask


class Routing(NamedTuple):
    """choice: int32 [b, t, a].  weights: [b, t, a].  probs: [b, t, e], of all experts."""

    choice: jax.Array
    weights: jax.Array
    probs: jax.Array


class RouterSums(NamedTuple):
    """Sums over the tokens that count.

    Attributes:
      tokens: how many they are.
      chosen: [e], how often each expert was chosen.
      probs: [e], the sum of its probabilities.
      z: the sum of logsumexp².
    """

    tokens: jax.Array
    chosen: jax.Array
    probs: jax.Array
    z: jax.Array


def route(logits: jax.Array, num_active: int, expert_scale: jax.Array) -> Routing:
    """The experts of each token and their weights: (1) to (3).

    Args:
      logits: [b, t, e], at least float32.
      expert_scale: [e].
    """
    probs = jax.nn.softmax(logits, axis=-1)
    weights, choice = jax.lax.top_k(probs, num_active)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return Routing(choice, weights * expert_scale.astype(probs.dtype)[choice], probs)


def sums(logits: jax.Array, routing: Routing, counted: Mask | None) -> RouterSums:
    """What the tokens of `counted` (None: all) add to a step's statistics."""
    num_experts = logits.shape[-1]
    weight = jnp.ones(logits.shape[:2], logits.dtype)
    weight = weight if counted is None else counted.astype(logits.dtype)
    hits = jnp.sum(jax.nn.one_hot(routing.choice, num_experts, dtype=logits.dtype), axis=2)
    return RouterSums(
        tokens=jnp.sum(weight),
        chosen=jax.lax.stop_gradient(jnp.einsum("bte,bt->e", hits, weight)),
        probs=jnp.einsum("bte,bt->e", routing.probs, weight),
        z=jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * weight),
    )


def load_balance(fractions: jax.Array, total: RouterSums) -> jax.Array:
    """(4) of one layer, times its tokens: e · Σ_j f_j · (sum of p_j).

    A sum over tokens like the loss itself, so that parts of a step add up to its whole; `fractions`
    [e] is f of the whole step.
    """
    return total.chosen.shape[-1] * jnp.sum(fractions * total.probs)


def fractions(total: RouterSums) -> jax.Array:
    """f of (4): the share of each expert in all choices, [e]."""
    return total.chosen / jnp.maximum(jnp.sum(total.chosen), 1)
