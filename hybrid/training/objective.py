"""What a step minimises, over micro-batches: the loss, its extra terms, and the gradient.

Everything is a sum over all predicted tokens, divided once by how many there are, be they spread
over micro-batches or devices: rows of few tokens weigh as little as they should. With micro-batches
m, L layers with experts, and f the experts' shares in all choices of the step (`ops/router.py`):

    (1)  N = Σ_m count                       loss = Σ_m nll / N
    (2)  z_loss = weight · Σ_m z / N
    (3)  balance = weight / L · Σ_layers e · Σ_j f_j · Σ_m p_j / N
    (4)  router_z = weight / L · Σ_layers Σ_m z_router / N
    (5)  gradient = Σ_m ∇(nll + z + balance + router_z) / N

In (3) f is a constant, counted over the whole step, so with several micro-batches it is needed
before the first gradient: one forward pass more counts it (without the head of the model).
Formed of each micro-batch alone, the term would depend on how a step is split.

Read next: `step.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.model.config import ModelConfig
from hybrid.model.trained import join
from hybrid.ops import cpu, router
from hybrid.ops.loss import LossSums
from hybrid.ops.router import RouterSums
from hybrid.sharding import constrain
from hybrid.training.config import StepConfig


class Sums(NamedTuple):
    """Sums over the predicted tokens: of the loss, and each layer's router [segment][run]."""

    loss: LossSums
    router: dict


def loss_and_gradient(
    config: ModelConfig,
    params: Any,
    batch: Batch,
    step_config: StepConfig,
    *,
    frozen: Any = None,
    shardings: Any = None,
) -> tuple[Sums, Any]:
    """Sums over all predicted tokens, and the gradient (5) of `params`.

    Args:
      params, frozen: the two parts of the parameters (`model/trained.py`); None: all are trained.
      batch: arrays [b, t]; `num_microbatches` divides b.
      shardings: of the gradient while it is summed up; None: left to jit.
    """
    parts = split_batch(batch, step_config.num_microbatches)
    stacked = None
    if step_config.num_microbatches > 1 and cpu.is_active():
        # Cutting layers out of their stacks in every micro-batch costs a CPU 4 % of a step.
        params, stacked = jax.vjp(functools.partial(model.apart, config), params)
        frozen = frozen and model.apart(config, frozen)
        shardings = shardings and model.apart(config, shardings)

    def sums_of(params, part):
        whole = params if frozen is None else join(params, frozen)
        return Sums(*model.training_sums(config, whole, part))

    fractions = None
    if step_config.load_balance_loss and step_config.num_microbatches > 1:
        counts = _summed(lambda part: _layers(sums_of(params, part).router), parts)
        fractions = _fractions(counts)

    def objective(params, part):
        sums = sums_of(params, part)
        loss = sums.loss.nll + step_config.z_loss * sums.loss.z
        return loss + _router_terms(sums.router, fractions, step_config), sums

    def one(part):
        gradient, sums = jax.grad(objective, has_aux=True)(params, part)
        if shardings is not None:
            gradient = jax.lax.with_sharding_constraint(gradient, shardings)
        return sums, gradient

    sums, gradient = _summed(one, parts)
    if stacked is not None:
        (gradient,) = stacked(gradient)
    count = jnp.maximum(sums.loss.count, 1)
    return sums, jax.tree.map(lambda g: g / count, gradient)


def _summed(function, parts):
    """The sum of `function` over micro-batches, one after the other."""
    first = jax.tree.map(lambda x: x[0], parts)
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, parts)[0]


def split_batch(batch: Batch, num_microbatches: int) -> Batch:
    """[b, t] arrays as [m, b/m, t]: micro-batch i holds the rows r with r mod m = i.

    So each micro-batch is spread over all devices and no row leaves the one that it is on.
    """

    def split(x):
        parts = x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", None)

    return jax.tree.map(split, batch)


# --- Routers ---------------------------------------------------------------------------------


def _layers(tree: dict) -> list[RouterSums]:
    """The sums of all routers, a stack of repetitions each."""
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, RouterSums))


def _fractions(layers: list[RouterSums]) -> list[jax.Array]:
    return [jax.vmap(router.fractions)(layer) for layer in layers]


def _router_terms(tree, fractions, step_config):
    """(3) and (4), times N."""
    layers = _layers(tree)
    balance_weight, z_weight = step_config.load_balance_loss, step_config.router_z_loss
    if not layers or not (balance_weight or z_weight):
        return 0.0
    balance, z, num_layers = _router_sums(layers, fractions or _fractions(layers))
    return (balance_weight * balance + z_weight * z) / num_layers


def _router_sums(layers, fractions):
    """Σ_layers of (4) in `router.py`, times its tokens; Σ_layers of z_router; L."""
    each = zip(fractions, layers, strict=True)
    balance = sum(jnp.sum(jax.vmap(router.load_balance)(f, layer)) for f, layer in each)
    z = sum(jnp.sum(layer.z) for layer in layers)
    return balance, z, sum(layer.tokens.shape[0] for layer in layers)


def router_metrics(tree: dict, step_config: StepConfig) -> dict[str, jax.Array]:
    """A step's router terms, weighted as in the objective, and how evenly experts were used.

    `load_balance_loss` and `router_z_loss` where they have a weight; `router/load_balance` (1 where
    all are used alike), `router/largest_share` of one expert in the choices of a layer (of the
    worst layer) and `router/idle_share` of experts that no token was sent to; none without experts.
    """
    layers = _layers(tree)
    if not layers:
        return {}
    fractions, tokens = _fractions(layers), jnp.maximum(layers[0].tokens[0], 1)
    balance, z, num_layers = _router_sums(layers, fractions)
    balance, z = balance / num_layers / tokens, z / num_layers / tokens
    shares = jnp.concatenate(fractions)
    metrics = {
        "router/load_balance": balance,
        "router/largest_share": jnp.max(shares),
        "router/idle_share": jnp.mean((shares == 0).astype(shares.dtype)),
    }
    if step_config.load_balance_loss:
        metrics["load_balance_loss"] = step_config.load_balance_loss * balance
    if step_config.router_z_loss:
        metrics["router_z_loss"] = step_config.router_z_loss * z
    return metrics
