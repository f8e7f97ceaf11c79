"""Trace and compile time against depth: 12 and 60 layers, scanned and unrolled.

    python benchmarks/depth.py [--json FILE]

The program is the loss and gradient of a narrow `LLLLLG` model on packed rows. A scan traces one
period whatever the depth; a loop traces every layer. Each row is a fresh trace in this process.
"""

import argparse
import functools
import json
import platform
import time

import jax

from hybrid import model
from hybrid.model.config import ModelConfig
from hybrid.training.step import abstract_batch

CONTEXT = 1024


def measure(num_layers: int, unroll: bool) -> dict:
    """Seconds to trace and to compile, and the size of the traced program."""
    config = ModelConfig(
        num_layers=num_layers, window_size=128, global_head_dim=64, unified_kv=True, unroll=unroll
    )
    batch, params = abstract_batch(1, CONTEXT), model.abstract(config)

    def loss(params, batch):
        return model.loss_sums(config, params, batch).nll

    jax.clear_caches()
    start = time.perf_counter()
    traced = jax.jit(jax.value_and_grad(loss)).trace(params, batch)
    lowered = traced.lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return {
        "num_layers": num_layers,
        "stack": "unrolled" if unroll else "scanned",
        "trace_seconds": middle - start,
        "compile_seconds": end - middle,
        "lines": lowered.as_text().count("\n"),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


@functools.cache
def machine() -> str:
    """What the figures were taken on."""
    device = jax.devices()[0]
    return (
        f"{device.device_kind}, {platform.processor() or platform.machine()}, jax {jax.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"loss and gradient, LLLLLG, d_model 128, {CONTEXT} tokens, float32; {machine()}")
    print(
        f"{'layers':>6} {'stack':<9} {'trace s':>8} {'compile s':>10} {'lines':>8} {'temp MiB':>9}"
    )
    measure(6, False)  # imports and caches of the first trace
    rows = []
    for num_layers in (12, 60):
        for unroll in (False, True):
            row = measure(num_layers, unroll)
            rows.append(row)
            print(
                f"{num_layers:>6} {row['stack']:<9} {row['trace_seconds']:>8.2f} "
                f"{row['compile_seconds']:>10.1f} {row['lines']:>8,} "
                f"{row['temporary_bytes'] / 2**20:>9.0f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
