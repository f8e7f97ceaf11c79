"""Our side of the comparison: a worker that times the product's own train step and forward loss."""

import functools
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import model as bench
from benchmarks.model import MODEL, Shape
from benchmarks.workers import readings, serve
from hybrid import model
from hybrid.costs.model_costs import forward_flops_per_token
from hybrid.data.batch import Batch
from hybrid.model.pattern import plan_layers
from hybrid.ops.attention import ATTENTION, AttentionRequest
from hybrid.ops.band import Band
from hybrid.training import step as train
from hybrid.training.config import OptimizerConfig, StepConfig
from hybrid.training.optimizer import make_optimizer, make_schedule

OPTIMIZER = OptimizerConfig(**bench.ADAMW, schedule="constant", warmup_fraction=0.0, clip_norm=0.0)
CEILING_SIZE = 4096


def batch_of(shape: Shape, segments: bool) -> Batch:
    """The tokens of `shape`, each predicting the next of its row; the last predicts nothing.

    segments: whether rows carry segment ids (one document each), as packed rows do in training.
    """
    tokens = bench.tokens(shape)
    mask = np.ones(shape, bool)
    mask[:, -1] = False
    return Batch(
        tokens=jnp.asarray(tokens),
        targets=jnp.asarray(np.roll(tokens, -1, axis=1)),
        segment_ids=jnp.ones(shape, jnp.int32) if segments else None,
        positions=jnp.broadcast_to(jnp.arange(shape.length, dtype=jnp.int32), shape),
        loss_mask=jnp.asarray(mask),
    )


@functools.cache
def start_params():
    """The weights both sides start from, on the host."""
    return bench.shaken(jax.jit(lambda: model.init(MODEL, jax.random.key(0)))())


def train_step(shape: Shape, num_microbatches: int, segments: bool, donate: bool = True):
    """The product's train step, jitted, and a fresh state: (step, state, batch).

    donate: as in training; False keeps the state for repeated calls.
    """
    training = StepConfig(
        num_steps=1000,
        batch_size=shape.rows,
        context_length=shape.length,
        num_microbatches=num_microbatches,
    )
    axes = model.logical_axes(MODEL)
    transform = make_optimizer(OPTIMIZER, training.num_steps, axes)
    schedule = make_schedule(OPTIMIZER, training.num_steps)
    step = train.make_train_step(MODEL, training, transform, schedule)
    step = jax.jit(step, donate_argnums=0 if donate else ())
    params = jax.tree.map(jnp.array, start_params())
    zeros = {name: jnp.zeros((), jnp.int32) for name in ("step", "skipped", "bad_in_a_row")}
    state = train.TrainState(params=params, opt_state=transform.init(params), **zeros)
    batch = batch_of(shape, segments)
    return step, state, batch


class Ours:
    """The methods that the parent asks for."""

    def describe(self, shape: list[int]) -> dict:
        """How this side runs."""
        length = shape[1]
        paths = {
            spec.kind: ATTENTION.choose(
                AttentionRequest.of(*_shapes(spec, length), _band(spec), None), MODEL.attention
            ).name
            for spec in plan_layers(MODEL).layers()
        }
        attention = ", ".join(f"{kind} {name}" for kind, name in paths.items())
        return {
            "library": f"jax {jax.__version__}",
            "threads": len(os.sched_getaffinity(0)),
            "dtype": MODEL.dtype,
            "attention": attention,
            "compile": "jit",
        }

    def flops(self, shape: list[int]) -> float:
        """Matrix FLOPs of one forward of `shape`, by the plan: visible pairs of tokens only."""
        return Shape(*shape).tokens * forward_flops_per_token(MODEL, shape[1])

    def save_weights(self, path: str) -> int:
        """Writes the starting weights by the peer's names; returns how many numbers are trained."""
        weights = bench.peer_weights(start_params())
        np.savez(path, **weights)
        return sum(v.size for name, v in weights.items() if not name.endswith("layer_scalar"))

    def ceiling(self, count: int = 5) -> list[float]:
        """GFLOP/s of float32 matrix products, one a reading."""
        x = jnp.ones((CEILING_SIZE, CEILING_SIZE), jnp.float32)
        dot = jax.jit(lambda x: x @ x).lower(x).compile()
        jax.block_until_ready(dot(x))
        timed = readings(lambda: jax.block_until_ready(dot(x)), count)
        return [2e-9 * CEILING_SIZE**3 / seconds for seconds, _ in timed]

    def prepare_train(
        self, shape: list[int], warmup: int, num_microbatches: int = 1, segments: bool = True
    ) -> dict:
        """Compiles and warms up; the loss before each warm-up step, from the starting weights."""
        start = time.perf_counter()
        step, self.state, self.batch = train_step(Shape(*shape), num_microbatches, segments)
        self.step = step.lower(self.state, self.batch).compile()
        compiled = time.perf_counter() - start
        losses = [self._step() for _ in range(warmup)]
        return {"compile_seconds": compiled, "losses": losses}

    def _step(self) -> float:
        self.state, metrics = self.step(self.state, self.batch)
        return float(metrics["loss"])

    def time_train(self, count: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of each of `count` steps."""
        return readings(self._step, count)

    def prepare_forward(self, shape: list[int], warmup: int, segments: bool = True) -> dict:
        """Compiles the forward loss of the starting weights and runs it."""
        batch = batch_of(Shape(*shape), segments)
        params = jax.tree.map(jnp.array, start_params())
        start = time.perf_counter()
        loss = jax.jit(functools.partial(model.loss_sums, MODEL)).lower(params, batch).compile()
        compiled = time.perf_counter() - start

        def forward() -> float:
            sums = loss(params, batch)
            return float(sums.nll / sums.count)

        self.forward = forward
        losses = [forward() for _ in range(warmup)]
        temporaries = loss.memory_analysis().temp_size_in_bytes
        return {"compile_seconds": compiled, "losses": losses, "temporaries": temporaries}

    def time_forward(self, count: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of each of `count` forwards."""
        return readings(self.forward, count)

    def release(self) -> None:
        """Drops what was prepared."""
        self.__dict__.clear()

    def peak_bytes(self) -> int:
        """The most memory that the process has held."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _shapes(spec, length):
    def array(heads):
        return jax.ShapeDtypeStruct((1, length, heads, spec.mixer.head_dim), jnp.dtype(MODEL.dtype))

    return array(spec.mixer.num_heads), array(spec.mixer.num_kv_heads)


def _band(spec):
    return Band.of_row(spec.mixer.window_size)


if __name__ == "__main__":
    serve(Ours())
