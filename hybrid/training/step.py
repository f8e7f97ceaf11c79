"""The pure train step: (state, batch) -> (state, metrics), and its compiled program.

A step whose loss or gradient norm is not finite changes neither parameters nor optimizer state;
it is counted, and the loop gives up after `max_bad_steps` of them in a row.

Read first: `objective.py` (what is minimised), `optimizer.py`, and `model/trained.py`.
Read next: `loop.py`, which calls the step.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.experiment import Experiment
from hybrid.model import lora
from hybrid.model.config import LoraConfig, ModelConfig
from hybrid.model.trained import abstract_trained, join, split
from hybrid.process import compiler
from hybrid.sharding import batch_sharding, placed, replicated, shardings
from hybrid.training.config import OptimizerConfig, StepConfig
from hybrid.training.objective import loss_and_gradient, router_metrics
from hybrid.training.optimizer import make_optimizer, make_schedule


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
      start: (parameters, donated; PRNG key) -> TrainState that begins with them; without the
        adapters of a LoRA run, which it adds.
      step: (TrainState, donated; Batch) -> (TrainState, metrics).
      state, batch: what `step` takes, as ShapeDtypeStructs with shardings; enough to compile
        it ahead of time and to restore a checkpoint.
      flags: of the compiler, `NAME=VALUE`, for `compiled`.
    """

    init: jax.stages.Wrapped
    start: jax.stages.Wrapped
    step: jax.stages.Wrapped
    state: TrainState
    batch: Batch
    flags: tuple[str, ...] = ()

    @property
    def is_compiled(self) -> bool:
        """Whether `compiled` was asked for."""
        return "compiled" in vars(self)

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The step, compiled when it is first asked for."""
        lowered = self.step.lower(self.state, self.batch)
        return lowered.compile(compiler_options=compiler.options(self.flags))


NO_ADAPTERS = LoraConfig()


def of_experiment(experiment: Experiment, mesh: Mesh, config: ModelConfig | None = None) -> Program:
    """The program of an experiment; `config` is its model as a stage of training has it."""
    config, training = config or experiment.model, experiment.training.step
    flags = experiment.xla.flags(mesh.devices.flat[0].platform)
    num_sources = len(experiment.data.mixture)
    return build(config, training, experiment.optimizer, mesh, experiment.lora, flags, num_sources)


def build(
    config: ModelConfig,
    step_config: StepConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    adapters: LoraConfig = NO_ADAPTERS,
    flags: tuple[str, ...] = (),
    num_sources: int = 0,
) -> Program:
    """The program of a run on `mesh`.  Trace, compile and call it under `jax.set_mesh(mesh)`.

    `num_sources` are those of a mixture, whose losses the step then tells apart.
    Equal arguments give the same Program, so that many runs in one process compile it once.
    Raises: ConfigError for a `freeze` or adapters that don't fit the model.
    """
    return _build(config, step_config, optimizer, mesh, adapters, flags, num_sources)


@functools.lru_cache(maxsize=8)
def _build(config, step_config, optimizer, mesh, adapters, flags, num_sources) -> Program:
    base_axes = model.logical_axes(config)
    logical_axes = lora.add_axes(adapters, base_axes)
    params, mask = abstract_trained(config, adapters, optimizer.freeze)
    trained_axes, _ = split(logical_axes, mask)
    transform = make_optimizer(optimizer, step_config.num_steps, trained_axes)
    schedule = make_schedule(optimizer, step_config.num_steps)

    def start(params: Any, rng: jax.Array) -> TrainState:
        params = lora.add(adapters, params, base_axes, rng)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, transform.init(split(params, mask)[0]), zero, zero, zero)

    def init(rng: jax.Array) -> TrainState:
        return start(model.init(config, rng), rng)

    param_shardings = shardings(mesh, logical_axes, params)
    shapes = jax.eval_shape(init, jax.random.key(0))
    state = placed(shapes, _state_shardings(shapes, param_shardings, mesh))
    sizes = step_config.batch_size, step_config.context_length
    batch = abstract_batch(*sizes, batch_sharding(mesh), num_sources)
    step = make_train_step(config, step_config, transform, schedule, mask, param_shardings)
    inputs = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
    outputs = inputs[0], replicated(mesh)
    return Program(
        init=jax.jit(init, out_shardings=inputs[0]),
        start=jax.jit(start, out_shardings=inputs[0], donate_argnums=0),
        step=jax.jit(step, in_shardings=inputs, out_shardings=outputs, donate_argnums=0),
        state=state,
        batch=batch,
        flags=flags,
    )


def make_train_step(
    config: ModelConfig,
    step_config: StepConfig,
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    mask: Any = None,
    param_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step as a pure function, not yet jitted.

    Args:
      transform: for the parameters that `mask` marks as trained; None: all.
    Its metrics are scalars: `loss`, `grad_norm` (before clipping), `learning_rate`,
    `num_tokens` (predicted), `skipped_steps`, `bad_in_a_row`, `z_loss` if it has a weight, and
    those of `objective.router_metrics`; of a mixture also `by_source`, sums of each source.
    """
    everything = jax.tree.map(lambda _: True, model.abstract(config))
    mask = everything if mask is None else mask
    gradient_shardings = None if param_shardings is None else split(param_shardings, mask)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        trained, frozen = split(state.params, mask)
        sums, gradient = loss_and_gradient(
            config, trained, batch, step_config, frozen=frozen, shardings=gradient_shardings
        )
        count = jnp.maximum(sums.loss.count, 1)
        with jax.named_scope("optimizer"):
            loss, grad_norm = sums.loss.nll / count, optax.tree.norm(gradient)
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            updates, opt_state = transform.update(gradient, state.opt_state, trained)
            new_trained = _select(finite, optax.apply_updates(trained, updates), trained)
            opt_state = _select(finite, opt_state, state.opt_state)
        bad = jnp.int32(~finite)
        new = TrainState(
            params=join(new_trained, frozen),
            opt_state=opt_state,
            step=state.step + 1,
            skipped=state.skipped + bad,
            bad_in_a_row=jnp.where(finite, 0, state.bad_in_a_row + 1),
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "num_tokens": sums.loss.count,
            "skipped_steps": new.skipped,
            "bad_in_a_row": new.bad_in_a_row,
        }
        if sums.loss.by_group is not None:
            metrics["by_source"] = sums.loss.by_group
        if step_config.z_loss:
            metrics["z_loss"] = step_config.z_loss * sums.loss.z / count
        return new, metrics | router_metrics(sums.router, step_config)

    return step


def abstract_batch(
    batch_size: int, context_length: int, sharding: Any = None, num_sources: int = 0
) -> Batch:
    """The shapes of a batch; `num_sources` are those of a mixture."""

    def shape(dtype: Any, columns: int = context_length) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, columns), dtype, sharding=sharding)

    names = ("tokens", "targets", "segment_ids", "positions")
    is_of_source = shape(jnp.bool_, num_sources) if num_sources else None
    integers = {name: shape(jnp.int32) for name in names}
    return Batch(**integers, loss_mask=shape(jnp.bool_), is_of_source=is_of_source)


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _state_shardings(shapes: TrainState, param_shardings: Any, mesh: Mesh) -> TrainState:
    """A moment lies where its parameter lies; counters, factors and the rest are copied.

    A leaf of the optimizer's state belongs to the parameter whose path is part of its own.
    """
    leaves = placed(shapes.params, param_shardings)
    params = dict(jax.tree_util.tree_leaves_with_path(leaves))

    def leaf_sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start, end in itertools.combinations(range(len(path) + 1), 2):
            param = params.get(path[start:end])
            if param is not None and param.shape == leaf.shape:
                return param.sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(leaf_sharding, shapes)
