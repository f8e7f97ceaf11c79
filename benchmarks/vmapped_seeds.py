"""Does it pay to train the seeds of a cell as one vmapped program?

    python -m benchmarks.vmapped_seeds [--quick]

Three seeds of `configs/micro.py`: three train steps one after the other, against one step under
vmap over stacked states and batches. Both start from the same parameters; readings alternate.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from benchmarks import machine
from hybrid import experiment, model
from hybrid.data.batch import Batch
from hybrid.training.optimizer import make_optimizer, make_schedule
from hybrid.training.step import TrainState, make_train_step

NUM_SEEDS = 3
PAGE = "configs/micro.py"


def setup(context_length: int, batch_size: int):
    """The jitted step alone and vmapped, the states of all seeds, and a batch for each."""
    config = experiment.load(PAGE)
    steps, axes = config.training.num_steps, model.logical_axes(config.model)
    transform = make_optimizer(config.optimizer, steps, axes)
    step = make_train_step(
        config.model, config.training.step, transform, make_schedule(config.optimizer, steps)
    )

    def init(key):
        params, zero = model.init(config.model, key), jnp.zeros((), jnp.int32)
        return TrainState(params, transform.init(params), zero, zero, zero)

    def batch(key):
        shape = (batch_size, context_length)
        tokens = jax.random.randint(key, shape, 0, 256)
        places = jnp.broadcast_to(jnp.arange(context_length), shape)
        return Batch(tokens, tokens, jnp.ones(shape, jnp.int32), places, jnp.ones(shape, bool))

    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    states, batches = jax.jit(jax.vmap(init))(keys), jax.vmap(batch)(keys)
    return jax.jit(step), jax.jit(jax.vmap(step)), states, batches


def measure(context_length: int, batch_size: int, readings: int) -> dict:
    """Best seconds for a step of all seeds, one after the other and together."""
    alone, together, states, batches = setup(context_length, batch_size)

    def one_by_one():
        for seed in range(NUM_SEEDS):
            state, batch = jax.tree.map(lambda leaf, i=seed: leaf[i], (states, batches))
            jax.block_until_ready(alone(state, batch))

    def at_once():
        jax.block_until_ready(together(states, batches))

    seconds: dict[str, list[float]] = {"alone": [], "vmapped": []}
    for reading in range(readings + 1):
        for name, run in (("alone", one_by_one), ("vmapped", at_once)):
            start = time.perf_counter()
            run()
            if reading:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    rows = {name: min(times) for name, times in seconds.items()}
    return {"context_length": context_length, "batch_size": batch_size, "seconds": rows}


def markdown(result: dict) -> str:
    """The table of docs/benchmarks.md."""
    rows = [
        (
            f"{row['batch_size']} × {row['context_length']}",
            f"{1e3 * row['seconds']['alone']:.0f}",
            f"{1e3 * row['seconds']['vmapped']:.0f}",
            f"{row['seconds']['alone'] / row['seconds']['vmapped']:.2f}",
        )
        for row in result["rows"]
    ]
    head = ["batch × context", "three steps, ms", "one vmapped step, ms", "gain"]
    note = f"Best of {result['readings']} alternating readings; {machine.line(result['machine'])}."
    return f"{machine.table(head, rows)}\n\n{note}"


def main() -> None:
    """Measures, prints and keeps the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer readings")
    readings = 3 if parser.parse_args().quick else 8
    rows = [measure(context, batch, readings) for context, batch in ((256, 16), (64, 16), (64, 4))]
    result = {"machine": machine.describe(), "readings": readings, "rows": rows}
    machine.save("vmapped_seeds", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
