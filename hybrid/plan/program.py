"""The train step compiled for devices that are not there, and what its program says.

Runs in a process of its own, since the environment decides what libtpu does before jax starts, and
libtpu ends the process where it can't go on. `compiled.py` starts it, writes a request to its
standard input and reads the figures from its standard output, JSON both.
"""

import json
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.costs import collectives, flops, hlo, memory
from hybrid.experiment import Experiment
from hybrid.ops import dispatch
from hybrid.plan.topology import KEY, in_use, parse
from hybrid.process import compiler
from hybrid.sharding import make_mesh
from hybrid.training import step

# A v4 chip is one device, as in a real slice; libtpu's own default are two.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


def measure(loaded: Experiment, devices: list[jax.Device], backend: str) -> dict[str, Any]:
    """Compiles the train step of `loaded` for `devices` and counts what one of them does.

    Returns: `bytes_per_device` {arguments, outputs, temporaries, total}, `flops_by_part`,
      `collectives` [operation, part, bytes], `memory_traffic`, `largest_buffers`,
      `lower_seconds`, `compile_seconds`.
    Raises: ConfigError for a flag that the compiler does not take.
    """
    compiler.check_flags(loaded.xla.flags(backend), devices[0])
    mesh = make_mesh(loaded.mesh, devices)
    program = step.of_experiment(loaded, mesh)
    times = [time.perf_counter()]
    with jax.set_mesh(mesh), dispatch.use_backend(backend, devices[0].device_kind):
        lowered = program.step.lower(program.state, program.batch)
        times.append(time.perf_counter())
        with tempfile.TemporaryDirectory() as folder:
            options = compiler.options(program.flags) | {"xla_dump_to": folder}
            compiled = lowered.compile(compiler_options=options)
            temporaries = _temporaries(pathlib.Path(folder))
        times.append(time.perf_counter())
    text, sizes = compiled.as_text(), compiled.memory_analysis()
    assert text is not None, "the compiler gives its program"
    assert sizes is not None, "the compiler gives its program's sizes"
    if temporaries is None:
        temporaries = sizes.temp_size_in_bytes
    counted = hlo.parse(text)
    exchanged = collectives.collective_bytes(counted)
    kept = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {
        "bytes_per_device": {
            "arguments": sizes.argument_size_in_bytes,
            "outputs": sizes.output_size_in_bytes,
            "temporaries": temporaries,
            "total": sizes.argument_size_in_bytes + kept + temporaries,
        },
        "flops_by_part": dict(flops.flops_by_part(counted)),
        "collectives": [[*key, size] for key, size in exchanged.items()],
        "memory_traffic": memory.traffic(counted),
        "largest_buffers": [buffer._asdict() for buffer in memory.largest_buffers(counted)],
        "lower_seconds": times[1] - times[0],
        "compile_seconds": times[2] - times[1],
    }


def _temporaries(dumped: pathlib.Path) -> int | None:
    """Bytes of the heap in main memory, from what the compiler dumps of its buffer assignment.

    `memory_analysis` counts the buffers of nested loops as if they shared none: 18.9 GiB where the
    heap of Gemma 4 31B's step on 64 chips has 12.5.
    """
    for path in dumped.glob("*-buffer-assignment.txt"):
        found = re.findall(r"(?m)^allocation \d+: size (\d+), preallocated-temp", path.read_text())
        return sum(map(int, found))
    return None


def _needed(message: str) -> float | None:
    """Bytes that a program would need, from the compiler's refusal; None if it is another one."""
    form = r"(?:Used|for HLO temporaries \()\s*([\d.]+)([KMGT]?)"
    size = re.search(form, message) if "RESOURCE_EXHAUSTED" in message else None
    return float(size.group(1)) * 1024 ** " KMGT".index(size.group(2) or " ") if size else None


def main() -> None:
    """Reads {config, topology}, writes the figures, {needed}, or {refused: parts of an error}."""
    request = json.load(sys.stdin)
    name = request["topology"]
    with in_use(parse(name)):
        loaded = experiment.from_config(request["config"])
    figures: dict[str, Any]
    try:
        options = _OPTIONS.get(name.partition(":")[0], {})
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        problem = f"libtpu refuses it ({str(error).splitlines()[0]})"
        figures = {"refused": [KEY, problem, name, ""]}
    else:
        try:
            figures = measure(loaded, list(described.devices), "tpu")
        except ConfigError as error:
            figures = {"refused": error.args}
        except jax.errors.JaxRuntimeError as error:
            figures = {"needed": _needed(str(error))}
            if figures["needed"] is None:
                raise
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
