"""The `training.` section and the pure train step: (state, batch) -> (state, metrics).

The loss of a step is a sum over all predicted tokens, divided once by how many there are, be they
spread over micro-batches or devices: rows of few tokens weigh as little as they should. With
micro-batches m, sums run over all of them (a scan), and only the quotient is formed at the end:

    (1)  N = Σ_m count        loss = Σ_m nll / N        z_loss = weight · Σ_m z / N
    (2)  gradient = Σ_m ∇(nll + weight · z) / N

A step whose loss or gradient norm is not finite changes neither parameters nor optimizer state;
it is counted, and the loop gives up after `max_bad_steps` of them in a row.

Read first: `optimizer.py`.  Read next: `loop.py`, which calls the step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from hybrid import model
from hybrid.config import key
from hybrid.data.batch import Batch
from hybrid.model_config import ModelConfig
from hybrid.ops.loss import LossSums
from hybrid.sharding import batch_sharding, constrain, placed, replicated, shardings
from hybrid.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Keys under `training.`."""

    num_steps: int = key(1000, "optimizer steps of the whole run", at_least=1)
    batch_size: int = key(16, "sequences a step, over all devices and micro-batches", at_least=1)
    context_length: int = key(256, "predicted positions of a row", at_least=1)
    num_microbatches: int = key(1, "parts of a batch, one after the other", at_least=1)
    seed: int = key(0, "of the initialisation and of the order of rows", at_least=0)
    log_every: int = key(1, "steps between training rows of metrics.jsonl", at_least=1)
    z_loss: float = key(0.0, "weight of the mean squared logsumexp in the objective", at_least=0)
    max_bad_steps: int = key(10, "stop after so many non-finite steps in a row", at_least=1)
    profile_start: int = key(0, "first step of a jax.profiler trace; 0: no trace", at_least=0)
    profile_steps: int = key(3, "steps in the trace", at_least=1)
    peak_flops: float = key(
        0.0, "peak FLOP/s of a device for MFU; 0: known or measured; -1: no MFU", at_least=-1
    )
    tensorboard: bool = key(True, "write TensorBoard event files")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes: arrays, or what describes them (shapes, shardings).

    Attributes:
      params: the model's parameters.
      opt_state: Optax's.
      step: int32, finished steps, skipped ones included.
      skipped: int32, steps without an update so far.
      bad_in_a_row: int32, how many of them end the run so far.
    """

    params: Any
    opt_state: Any
    step: Any
    skipped: Any
    bad_in_a_row: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted functions of a run and the shapes they take.

    Attributes:
      init: PRNG key -> TrainState, each array made where it lives.
      step: (TrainState, donated; Batch) -> (TrainState, metrics).
      state, batch: what `step` takes, as ShapeDtypeStructs with shardings; enough to compile
        it ahead of time and to restore a checkpoint.
    """

    init: jax.stages.Wrapped
    step: jax.stages.Wrapped
    state: TrainState
    batch: Batch

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The step, compiled when it is first asked for."""
        return self.step.lower(self.state, self.batch).compile()


# What a compiled step depends on; runs that differ in other keys of the section share it.
STEP_KEYS = ("num_steps", "batch_size", "context_length", "num_microbatches", "z_loss")


def build(
    config: ModelConfig, training: TrainingConfig, optimizer: OptimizerConfig, mesh: Mesh
) -> Program:
    """The program of a run on `mesh`.  Trace, compile and call it under `jax.set_mesh(mesh)`.

    Runs of one shape get the same Program, so that many in one process compile it once.
    """
    kept = {name: getattr(training, name) for name in STEP_KEYS}
    return _build(config, TrainingConfig(**kept), optimizer, mesh)


@functools.lru_cache(maxsize=8)
def _build(
    config: ModelConfig, training: TrainingConfig, optimizer: OptimizerConfig, mesh: Mesh
) -> Program:
    logical_axes = model.logical_axes(config)
    transform = make_optimizer(optimizer, training.num_steps, logical_axes)
    schedule = make_schedule(optimizer, training.num_steps)

    def init(rng: jax.Array) -> TrainState:
        params = model.init(config, rng)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, transform.init(params), zero, zero, zero)

    param_shardings = shardings(mesh, logical_axes, model.abstract(config))
    shapes = jax.eval_shape(init, jax.random.key(0))
    state = placed(shapes, _state_shardings(shapes, param_shardings, mesh))
    batch = abstract_batch(training.batch_size, training.context_length, batch_sharding(mesh))
    step = make_train_step(config, training, transform, schedule, param_shardings)
    where = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
    return Program(
        init=jax.jit(init, out_shardings=where[0]),
        step=jax.jit(
            step,
            in_shardings=where,
            out_shardings=(where[0], replicated(mesh)),
            donate_argnums=0,
        ),
        state=state,
        batch=batch,
    )


def make_train_step(
    config: ModelConfig,
    training: TrainingConfig,
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    param_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step as a pure function, not yet jitted.

    Its metrics are scalars: `loss`, `grad_norm` (before clipping), `learning_rate`,
    `num_tokens` (predicted), `skipped_steps`, `bad_in_a_row`, and `z_loss` if it has a weight.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        sums, gradient = loss_and_gradient(
            config, state.params, batch, training.num_microbatches, training.z_loss, param_shardings
        )
        count = jnp.maximum(sums.count, 1)
        loss, grad_norm = sums.nll / count, optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        bad = jnp.int32(~finite)
        new = TrainState(
            params=_where(finite, params, state.params),
            opt_state=_where(finite, opt_state, state.opt_state),
            step=state.step + 1,
            skipped=state.skipped + bad,
            bad_in_a_row=jnp.where(finite, 0, state.bad_in_a_row + 1),
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "num_tokens": sums.count,
            "skipped_steps": new.skipped,
            "bad_in_a_row": new.bad_in_a_row,
        }
        if training.z_loss:
            metrics["z_loss"] = training.z_loss * sums.z / count
        return new, metrics

    return step


def loss_and_gradient(
    config: ModelConfig,
    params: Any,
    batch: Batch,
    num_microbatches: int = 1,
    z_loss: float = 0.0,
    param_shardings: Any = None,
) -> tuple[LossSums, Any]:
    """Sums of the loss over all predicted tokens, and the gradient of their mean: (1), (2).

    Args:
      batch: arrays [b, t]; `num_microbatches` divides b.
      param_shardings: where the gradient is kept while it is summed up; None: left to jit.
    """

    def objective(params, part):
        sums = model.loss_sums(config, params, part)
        return sums.nll + z_loss * sums.z, sums

    def one(part):
        gradient, sums = jax.grad(objective, has_aux=True)(params, part)
        if param_shardings is not None:
            gradient = jax.lax.with_sharding_constraint(gradient, param_shardings)
        return sums, gradient

    if num_microbatches == 1:
        sums, gradient = one(batch)
    else:
        parts = split_batch(batch, num_microbatches)
        total = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)),
        )
        add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)  # noqa: E731
        (sums, gradient), _ = jax.lax.scan(add, total, parts)
    count = jnp.maximum(sums.count, 1)
    return sums, jax.tree.map(lambda g: g / count, gradient)


def split_batch(batch: Batch, num_microbatches: int) -> Batch:
    """[b, t] arrays as [m, b/m, t]: micro-batch i holds the rows r with r mod m = i.

    So each micro-batch is spread over all devices and no row leaves the one that it is on.
    """

    def split(x):
        parts = x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", "time")

    return jax.tree.map(split, batch)


def abstract_batch(batch_size: int, context_length: int, sharding: Any = None) -> Batch:
    """The shapes of a batch."""

    def shape(dtype):
        return jax.ShapeDtypeStruct((batch_size, context_length), dtype, sharding=sharding)

    ints = {
        field.name: shape(jnp.int32)
        for field in dataclasses.fields(Batch)
        if field.name != "loss_mask"
    }
    return Batch(**ints, loss_mask=shape(jnp.bool_))


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _state_shardings(shapes: TrainState, param_shardings: Any, mesh: Mesh) -> TrainState:
    """A moment lies where its parameter lies; counters, factors and the rest are copied.

    A leaf of the optimizer's state belongs to the parameter whose path is part of its own.
    """
    places = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes.params),
            jax.tree.leaves(param_shardings),
            strict=True,
        )
    }

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            for end in range(len(path), start, -1):
                shape, sharding = places.get(path[start:end], (None, None))
                if shape == leaf.shape:
                    return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, shapes)
