"""The Optax chain of the `optimizer.` section, each layer of a stack on its own.

Weights of repeated layers are stacked, `[layers, ...]`. AdamW works element by element, where that
makes no difference; the two others would mix layers if they took a stack for one tensor:

    adafactor   factors the second moment over the two largest axes and clips by the rms of a
                tensor: run per layer under vmap
    muon        orthogonalises matrices: the logical axes say which axes of a kernel are its
                inputs and which its outputs; all others (the stack) are batch. Kernels of the
                stack go to muon; embeddings, vectors and depthwise convolutions, which are a
                vector a channel, to Adam; updates are scaled to an rms of 0.2 (Liu et al.,
                2502.16982), so that Adam's learning rate and decay fit both.

Kernels of experts, `[layers, experts, ...]`, and block-diagonal ones, `[layers, blocks, ...]`, are
stacks twice over and treated alike.

Moments kept in bfloat16 are computed in float32 and rounded when they are stored. That does no
harm while a step moves them by more than bfloat16 resolves (2^-8): of normal gradients the mean
second moment is off by 0.0, 0.5 and 5 % at a decay of 0.95, 0.98 and 0.99; at 0.999 it is 2.7
times too large and never falls again, however small gradients become. Decays above 0.99 are
refused, and adafactor, whose decay tends to 1.

Order for every name: clip by the global norm, the optimizer's direction, decoupled weight decay
(only where a tensor has two axes or more, the stack not counted), the learning rate.

Read next: `step.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybrid.axes import CONV, EMBED, VOCAB
from hybrid.model.params import is_matrix, map_axes, tensor_axes
from hybrid.training.config import OptimizerConfig

MUON_RMS = 0.2


# --- The learning rate -----------------------------------------------------------------------


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of an update, by how many went before it (0 .. num_steps - 1).

    The first update of a warm-up has a rate above 0 and the last of a run (cosine, wsd) has exactly
    `final_fraction` of the peak, however few steps there are: a run's only update is its last.
    """
    warmup = config.warmup_fraction * num_steps
    decay = config.decay_fraction * num_steps
    last = num_steps - 1

    def share(count: jax.Array) -> jax.Array:
        if config.schedule == "constant":
            return jnp.ones_like(count)
        start = warmup if config.schedule == "cosine" else last - decay
        start = min(start, last - 0.5)  # the last update is behind it, whatever the fractions
        progress = jnp.clip((count - start) / (last - start), 0, 1)
        falling = 1 - progress
        if config.schedule == "cosine":
            falling = (1 + jnp.cos(jnp.pi * progress)) / 2
        return config.final_fraction + (1 - config.final_fraction) * falling

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count).astype(float)  # float64 where x64 is on
        rising = jnp.minimum(1, (count + 1) / max(warmup, 1))
        return config.learning_rate * rising * share(count)

    return schedule


# --- The chain -------------------------------------------------------------------------------


def make_optimizer(
    config: OptimizerConfig, num_steps: int, logical_axes: Any
) -> optax.GradientTransformation:
    """Gradients and parameters -> updates to add to the parameters.

    Args:
      num_steps: length of the run, for the schedule.
      logical_axes: the parameters' tree with a tuple of axis names at each leaf.
    """
    moments = _direction(config, logical_axes)
    if config.moment_dtype == "bfloat16":
        moments = kept_in(moments, jnp.bfloat16)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(
        *clip,
        moments,
        optax.add_decayed_weights(config.weight_decay, map_axes(is_matrix, logical_axes)),
        optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    )


def _direction(config: OptimizerConfig, logical_axes: Any) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if config.name == "adafactor":
        # Without momentum; the rate is relative to a tensor's rms (1804.04235, sec. 8).
        one_tensor = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
        return per_layer(one_tensor, logical_axes)
    # Muon's own rate is 1 and its sign undone, as the chain goes on from here.
    muon = optax.contrib.muon(
        learning_rate=1.0,
        beta=config.muon_beta,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        eps=config.eps,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=muon_dimensions(logical_axes),
    )
    return optax.chain(muon, optax.scale(-1.0))


def kept_in(
    transform: optax.GradientTransformation, dtype: jax.typing.DTypeLike
) -> optax.GradientTransformation:
    """`transform` with its moments, `mu` and `nu`, kept in `dtype` and computed as they were."""

    def init(params):
        return _cast(transform.init(params), dtype)

    def update(updates, state, params=None):
        wide = jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(transform.init, updates))
        state = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), state, wide)
        updates, state = transform.update(updates, state, params)
        return updates, _cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _cast(state, dtype):
    """`state` with its moments in `dtype`; Muon's state holds constants too."""

    def moment(path, leaf):
        names = {getattr(entry, "name", None) for entry in path}
        return leaf.astype(dtype) if names & {"mu", "nu"} else leaf

    return jax.tree_util.tree_map_with_path(moment, state)


# --- Layers of a stack on their own ----------------------------------------------------------


def per_layer(
    transform: optax.GradientTransformation, logical_axes: Any
) -> optax.GradientTransformation:
    """`transform` run on each tensor by itself: each layer, expert and block of a stacked one.

    Its state is a tree like the parameters, with the transform's own state at each leaf, the
    leaves of stacked tensors stacked alike.
    """

    def mapped(function, names):
        for _ in range(len(names) - len(tensor_axes(names))):
            function = jax.vmap(function)
        return function

    def init(params):
        return map_axes(lambda names, p: mapped(transform.init, names)(p), logical_axes, params)

    def update(updates, states, params=None):
        both = map_axes(
            lambda names, *leaf: mapped(transform.update, names)(*leaf),
            logical_axes,
            updates,
            states,
            params,
        )
        return tuple(map_axes(lambda _, pair, i=i: pair[i], logical_axes, both) for i in range(2))

    return optax.GradientTransformation(init, update)


def muon_dimensions(logical_axes: Any) -> Any:
    """Which axes of a kernel are contracted and which come out; None sends a leaf to Adam.

    Kernels are the stack's tensors of two axes or more: they read the residual stream
    ([embed, ...out]) or write to it ([...in, embed]); heads are flattened with their dims, experts
    and blocks are matrices of their own. Depthwise convolutions multiply no vectors by a matrix.
    """

    def dimensions(names: tuple) -> Any:
        kernel = tensor_axes(names)
        if kernel == names or {VOCAB, CONV} & {*kernel} or not is_matrix(names):
            return None
        first, end = len(names) - len(kernel), len(names)
        cut = first + 1 if kernel[0] in (EMBED, None) else end - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, cut)), tuple(range(cut, end)))

    return map_axes(dimensions, logical_axes)
