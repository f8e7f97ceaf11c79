"""Where a train step's time goes: the whole step and its parts, each timed by itself.

    python -m benchmarks.parts                  --quick: fewer repetitions; --only 4x2048

A part is a forward and a backward of one piece at the shape of a micro-batch, times how often a
step runs it. FLOPs are those of the compiled program's matrix products, counted by walking its HLO:
what a tile computes and masks away counts as work done. The rest of the step (embedding, residual
sums, gradient sums, copies) is the difference between the whole and the parts.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import machine, ours
from benchmarks.model import MODEL, TRAIN_SHAPES, Shape
from benchmarks.train_step import MICROBATCHES
from benchmarks.workers import readings
from hybrid import model
from hybrid.costs.flops import count_flops
from hybrid.model.pattern import LayerSpec, plan_layers
from hybrid.ops import rope
from hybrid.ops.attention import attend
from hybrid.ops.band import Band
from hybrid.ops.dense import dense
from hybrid.ops.feed_forward import gated_gelu
from hybrid.ops.loss import cross_entropy
from hybrid.ops.norm import rms_norm
from hybrid.process.host import keep_freed_memory
from hybrid.training.optimizer import make_optimizer

SETTLE = 0.2


class Part(NamedTuple):
    """A piece of the step: `function(*inputs)`, run `times` a step."""

    name: str
    function: Callable
    inputs: tuple
    times: int


def main(argv: list[str] | None = None) -> None:
    """Times the parts, prints the tables and writes `results/parts.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [shape.name for shape in TRAIN_SHAPES]
    parser.add_argument("--quick", action="store_true", help="two repetitions instead of five")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    result = run(arguments.only, 2 if arguments.quick else 5)
    print(markdown(result))
    print("written:", machine.save("parts", result))


def run(names: list[str], count: int) -> dict[str, Any]:
    """All shapes as one JSON-able value."""
    worker = ours.Ours()
    before = worker.ceiling()
    shapes = {
        shape.name: [_timed(part, count) for part in step_parts(shape, MICROBATCHES[shape.name])]
        for shape in TRAIN_SHAPES
        if shape.name in names
    }
    ceiling = {"before": before, "after": worker.ceiling()}
    return {"machine": machine.describe(), "ceiling": ceiling, "shapes": shapes}


def _timed(part: Part, count: int) -> dict[str, Any]:
    compiled = jax.jit(part.function).lower(*part.inputs).compile()
    run = lambda: jax.block_until_ready(compiled(*part.inputs))  # noqa: E731
    run()
    time.sleep(SETTLE)
    timed = readings(run, count)
    return {
        "part": part.name,
        "times": part.times,
        "flops": part.times * count_flops(compiled.as_text()),
        "ms": 1e3 * part.times * min(seconds for seconds, _ in timed),
        "others": max(others for _, others in timed),
    }


# --- The parts -------------------------------------------------------------------------------


def step_parts(shape: Shape, num_microbatches: int) -> list[Part]:
    """The whole step first, then its parts."""
    small = Shape(shape.rows // num_microbatches, shape.length)
    parts = [_whole(shape, num_microbatches)]
    specs = list(plan_layers(MODEL).layers())
    for spec in dict.fromkeys(specs):
        times = specs.count(spec) * num_microbatches
        parts += [_attention(spec, small, times), _projections(spec, small, times)]
        parts += [_norms(spec, small, times)]
    parts += [_feed_forward(small, len(specs) * num_microbatches)]
    return [*parts, _loss(small, num_microbatches), _optimizer()]


def _whole(shape: Shape, num_microbatches: int) -> Part:
    step, state, batch = ours.train_step(shape, num_microbatches, segments=True, donate=False)
    return Part("whole step", step, (state, batch), 1)


def _both_ways(function: Callable) -> Callable:
    """inputs and the result's cotangent -> result and the inputs' gradients."""

    def run(cotangent, *inputs):
        out, back = jax.vjp(function, *inputs)
        return out, back(cotangent)

    return run


def _normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape, jnp.dtype(MODEL.dtype))


def _heads(spec: LayerSpec, shape: Shape) -> tuple[jax.Array, jax.Array]:
    q = _normal(*shape, spec.mixer.num_heads, spec.mixer.head_dim)
    return q, _normal(*shape, spec.mixer.num_kv_heads, spec.mixer.head_dim)


def _attention(spec: LayerSpec, shape: Shape, times: int) -> Part:
    q, k = _heads(spec, shape)
    band = Band.of_row(spec.mixer.window_size, jnp.ones(shape, jnp.int32))

    def core(q, k, v):
        return attend(q, k, v, band)

    scaled = q * spec.mixer.head_dim**-0.5
    return Part(f"attention core, {spec.kind}", _both_ways(core), (q, scaled, k, k), times)


def _projections(spec: LayerSpec, shape: Shape, times: int) -> Part:
    width, (q, k) = MODEL.d_model, _heads(spec, shape)
    kernels = [_normal(width, *array.shape[2:]) for array in (q, k, k)]
    kernels = kernels[:2] if spec.mixer.unified_kv else kernels
    back = _normal(spec.mixer.num_heads, spec.mixer.head_dim, width)

    def project(x, y, kernels, back):
        return [dense(x, kernel) for kernel in kernels], dense(y, back, num_axes=2)

    x = _normal(*shape, width)
    outs = ([q, k, k][: len(kernels)], x)
    inputs = (outs, x, q, kernels, back)
    return Part(f"q, k, v, o projections, {spec.kind}", _both_ways(project), inputs, times)


def _norms(spec: LayerSpec, shape: Shape, times: int) -> Part:
    """Four norms of the stream, those of queries, keys and values, and the rotations."""
    x, (q, k) = _normal(*shape, MODEL.d_model), _heads(spec, shape)
    positions = jnp.broadcast_to(jnp.arange(shape.length), shape)
    turn = rope.rotation(
        positions,
        spec.mixer.head_dim,
        theta=spec.mixer.rope.theta,
        fraction=spec.mixer.rope.fraction,
    )

    def norms(streams, q, k, v, scale, head_scale):
        out = [rms_norm(x, scale) for x in streams]
        q, k = (rope.apply(rms_norm(a, head_scale), turn) for a in (q, k))
        return out, q, k, rms_norm(v, None)

    streams = [x + i for i in range(4)]
    scales = jnp.ones(MODEL.d_model), jnp.ones(spec.mixer.head_dim)
    inputs = ((streams, q, k, k), streams, q, k, k, *scales)
    return Part(f"norms and RoPE, {spec.kind}", _both_ways(norms), inputs, times)


def _feed_forward(shape: Shape, times: int) -> Part:
    x, wide = _normal(*shape, MODEL.d_model), (MODEL.d_model, MODEL.ffn_dim)
    kernels = _normal(*wide), _normal(*wide), _normal(*wide[::-1])
    return Part("feed-forward", _both_ways(gated_gelu), (x, x, *kernels), times)


def _loss(shape: Shape, times: int) -> Part:
    batch = ours.batch_of(shape, segments=True)

    def loss(x, embedding):
        cap = MODEL.logit_softcap
        return cross_entropy(x, embedding, batch.targets, batch.loss_mask, softcap=cap).nll

    hidden = _normal(*shape, MODEL.d_model)
    embedding = 0.06 * _normal(MODEL.vocab_size, MODEL.d_model)
    return Part("loss with logits", _both_ways(loss), (jnp.ones(()), hidden, embedding), times)


def _optimizer() -> Part:
    params = jax.tree.map(jnp.array, ours.start_params())
    transform = make_optimizer(ours.OPTIMIZER, 1000, model.logical_axes(MODEL))

    def update(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return Part("optimizer (AdamW)", update, (params, transform.init(params), params), 1)


# --- Tables ----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """A table for each shape, and the ceiling."""
    ceiling = result["ceiling"]
    best = max(max(values) for values in ceiling.values())
    tables = [
        f"Train step, {name.replace('x', '×')}, micro-batches: {MICROBATCHES[name]}\n\n"
        + _shape_table(parts, best)
        for name, parts in result["shapes"].items()
    ]
    low = min(min(values) for values in ceiling.values())
    caption = (
        f"Ceiling: float32 products of 4096², {low:.0f} to {best:.0f} GFLOP/s before and after; "
        f"shares are of {best:.0f}. {machine.line(result['machine'])}."
    )
    return "\n\n".join([*tables, caption])


def _shape_table(parts: list[dict[str, Any]], ceiling: float) -> str:
    whole, *pieces = parts
    rest = {
        "part": "rest",
        "flops": max(0, whole["flops"] - sum(part["flops"] for part in pieces)),
        "ms": whole["ms"] - sum(part["ms"] for part in pieces),
    }

    def row(part):
        rate = part["flops"] / part["ms"] * 1e-6
        counted = part["flops"] > 0 and part["ms"] > 0
        return (
            part["part"],
            f"{part['flops'] * 1e-9:.1f}",
            f"{part['ms']:.0f}",
            f"{100 * part['ms'] / whole['ms']:.0f} %",
            f"{rate:.0f}" if counted else "",
            f"{100 * rate / ceiling:.0f} %" if counted else "",
        )

    header = ("part", "GFLOPs", "ms", "of the step", "GFLOP/s", "of the ceiling")
    return machine.table(header, map(row, [whole, *pieces, rest]))


if __name__ == "__main__":
    main()
