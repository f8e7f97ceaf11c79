"""Figures of a train step compiled for a TPU topology: by a process of its own, kept by content.

A compilation takes minutes, so its figures are kept in the user's cache folder, under a hash of
what they depend on: the resolved config, the topology, the compiler's flags, the versions of its
packages and the package's own source.

Read next: `program.py`, what the process does.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from jax.sharding import AbstractMesh

import hybrid
from hybrid import experiment as experiments
from hybrid.config import ConfigError
from hybrid.data.cache import cache_root
from hybrid.experiment import Experiment
from hybrid.plan.topology import KEY, Topology
from hybrid.process.compiler import FLAG_VARIABLES
from hybrid.process.files import write_json
from hybrid.sharding import MESH_AXES

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
_COMMAND = [sys.executable, "-m", "hybrid.plan.program"]
# Of a process that compiles for TPUs: libtpu asks no metadata server, jax runs on the CPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
Progress = Callable[[float], None]


def figures(
    experiment: Experiment, topology: Topology, progress: Progress = lambda seconds: None
) -> dict[str, Any]:
    """What `program.measure` says of the train step, or {"needed": bytes} where it can't fit.

    Args:
      progress: called each second while the compiler runs, with the seconds so far.
    Raises: ConfigError without libtpu, where mesh, batch, model and topology don't go together, and
      for a flag that libtpu does not take.
    """
    mesh = check_mesh(experiment, topology)
    if importlib.util.find_spec("libtpu") is None:
        problem, accepted = "needs the package libtpu", "pip install 'hybrid-attention[tpu]'"
        raise ConfigError(KEY, problem, topology.name, accepted)
    config = experiments.to_dict(experiment)
    request = {"config": config, "topology": topology.name}
    # What the step depends on, `training.` by the section that holds just that.
    read = [config["model"], config["optimizer"], config["lora"], mesh.axis_sizes]
    read += [dataclasses.asdict(experiment.training.step), experiment.xla.tpu_flags]
    read += [os.environ.get(name) for name in FLAG_VARIABLES]
    kept = cache_root() / "programs" / f"{_fingerprint(read, topology)}.json"
    try:
        return json.loads(kept.read_text())
    except (OSError, ValueError):  # none yet, or half a file of a full disk
        pass
    found = _compile(request, progress)
    if "refused" in found:
        raise ConfigError(*found["refused"])
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, found)
    except OSError:  # a folder that can't be written costs the next call its time, nothing else
        pass
    return found


def check_mesh(experiment: Experiment, topology: Topology) -> AbstractMesh:
    """The mesh over the topology.  Raises: ConfigError by the key of what it doesn't divide."""
    sizes = experiment.mesh.sizes(topology.num_devices)
    mesh = AbstractMesh(sizes, MESH_AXES)
    experiment.check_mesh(mesh)
    return mesh


def _compile(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as words:
        json.dump(request, words)
        words.seek(0)
        start = time.monotonic()
        with subprocess.Popen(
            _COMMAND,
            stdin=words,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        ) as child:
            try:
                while child.poll() is None:
                    progress(time.monotonic() - start)
                    try:
                        child.wait(1)
                    except subprocess.TimeoutExpired:
                        continue
                printed = child.stdout.read() if child.stdout else ""
            finally:
                child.kill()
        log.seek(0)
        if child.returncode:
            said = "".join(log.readlines()[-30:])
            raise RuntimeError(f"the compiler's process ended with {child.returncode}:\n{said}")
    return json.loads(printed.splitlines()[-1])


def _fingerprint(read: list[Any], topology: Topology) -> str:
    versions = {name: _version(name) for name in PACKAGES}
    content = json.dumps([*read, topology.name, versions, _source()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a folder on the path
        return ""


@functools.cache
def _source() -> str:
    """A hash of the package's own text."""
    digest = hashlib.sha256()
    root = pathlib.Path(hybrid.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
