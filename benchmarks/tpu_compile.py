"""Compiles a train step ahead of time for a real TPU topology, without a TPU.

    python benchmarks/tpu_compile.py                     # configs/small.py, v5e:2x4, fsdp=8
    python benchmarks/tpu_compile.py --remat none full --topology v5p:2x2x2 --json out.json

Prints what the TPU compiler reports a device: arguments (parameters, optimizer state, batch) and
temporaries, by rematerialisation. Needs the `libtpu` package (the `test` extra has it).
"""

import argparse
import json
import os
import time

# Before jax starts: libtpu asks no metadata server, and jax itself runs on the CPU.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import dataclasses

import jax
from jax.experimental import topologies

from hybrid import experiment
from hybrid.sharding import MeshConfig, make_mesh
from hybrid.training import step

MIB = 2**20


def compile_step(loaded: experiment.Experiment, devices: list, remat: str) -> dict:
    """The compiler's memory figures of a device, and how long it took."""
    config = dataclasses.replace(loaded.model, remat=remat)
    mesh = make_mesh(loaded.mesh, devices)
    program = step.build(config, loaded.training.step, loaded.optimizer, mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = program.step.lower(program.state, program.batch).compile()
    memory = compiled.memory_analysis()
    return {
        "remat": remat,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/small.py")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--remat", nargs="+", default=["none", "dots", "full"])
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    devices = list(
        topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    )
    loaded = experiment.load(options.config)
    loaded = dataclasses.replace(loaded, mesh=MeshConfig(data=1, fsdp=len(devices)))
    training = loaded.training
    print(
        f"train step of {options.config}: {training.batch_size} rows of "
        f"{training.context_length} tokens, {loaded.model.dtype}; fsdp={len(devices)} on "
        f"{options.topology} ({devices[0].device_kind}); MiB a device"
    )
    print(f"{'remat':<6} {'arguments':>10} {'temporaries':>12} {'compile s':>10}")
    rows = []
    for remat in options.remat:
        row = compile_step(loaded, devices, remat)
        rows.append(row)
        print(
            f"{remat:<6} {row['arguments'] / MIB:>10,.1f} {row['temporaries'] / MIB:>12,.1f} "
            f"{row['seconds']:>10.1f}",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"topology": options.topology, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
