"""What a run was: `config.json` and `provenance.json`, and what may differ when it resumes."""

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.origin import upgraded
from hybrid.process.files import write_json

CONFIG, PROVENANCE = "config.json", "provenance.json"
# Keys that a resumed run may set anew; of training.num_steps, only more.
MAY_CHANGE = ("training.log_every", "eval.", "checkpoint.", "mesh.")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(data_fingerprint: str, command_line: Sequence[str]) -> dict[str, Any]:
    """Everything outside the config that decides a run's numbers or tells where they come from."""
    devices = jax.devices()
    has_affinity = hasattr(os, "sched_getaffinity")
    num_threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return {
        "versions": {
            "python": platform.python_version(),
            "hybrid": _version("hybrid-attention"),
            **{name: _version(name) for name in _PACKAGES},
        },
        "git_commit": _git_commit(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "thread_count": num_threads,
        "data_fingerprint": data_fingerprint,
        "command_line": list(command_line),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None if it is no checkout.

    A package installed below some other project's repository is none of its tracked files.
    """
    file = pathlib.Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        keys: dict[str, Any] = {"stderr": subprocess.DEVNULL, "text": True, "timeout": 10}
        return subprocess.check_output(command, **keys).strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def write(workdir: pathlib.Path, experiment: Experiment, record: dict[str, Any]) -> None:
    """Writes both files; earlier starts of the run stay under `earlier`."""
    last = read_json(workdir / PROVENANCE)
    if last is not None:
        record = record | {"earlier": [*last.pop("earlier", []), last]}
    write_json(workdir / PROVENANCE, record)
    write_json(workdir / CONFIG, experiment_lib.to_dict(experiment))


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The object in a file; None without a file.  Raises: ConfigError for a broken one."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError("--workdir", f"{path.name} is broken ({error})", str(path)) from None
    if not isinstance(values, dict):
        raise ConfigError("--workdir", f"{path.name} holds no object", str(path))
    return values


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The resolved config of a run, under the keys of this version.

    Raises: ConfigError if the folder is not a workdir.
    """
    if not workdir.is_dir():
        raise ConfigError("--workdir", "no such folder", str(workdir), "the workdir of a run")
    values = read_json(workdir / CONFIG)
    if values is None:
        raise ConfigError("--workdir", f"holds no {CONFIG}", str(workdir), "the workdir of a run")
    return dict(upgraded(values))


def check_resume(workdir: pathlib.Path, experiment: Experiment) -> list[str]:
    """Warnings about what a resumed run changes.  Raises: ConfigError for what it must not."""
    # A key that is newer than the run had its default there.
    recorded = config_lib.flatten(experiment_lib.defaults().to_dict())
    recorded |= config_lib.flatten(read_config(workdir))
    current = config_lib.flatten(experiment_lib.to_dict(experiment))
    for name in sorted(recorded.keys() | current.keys()):
        old, new = recorded.get(name), current.get(name)
        if _plain(old) == _plain(new) or name.startswith(MAY_CHANGE):
            continue
        if name == "training.num_steps" and (new or 0) > (old or 0):
            continue
        remedy = "it may only grow" if name == "training.num_steps" else "use another --workdir"
        accepted = f"this run has {old!r}; {remedy}"
        raise ConfigError(name, "differs from the run in --workdir", new, accepted)
    old, new = recorded["training.num_steps"], current["training.num_steps"]
    if old == new or experiment.optimizer.schedule == "constant":
        return []
    return [f"training.num_steps grew from {old} to {new}: the schedule is another one"]


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def changed_machine(workdir: pathlib.Path, record: dict[str, Any]) -> list[str]:
    """A warning if the run resumes on a machine where its bits will differ."""
    last = read_json(workdir / PROVENANCE) or {}
    changes = [
        f"{name} was {last[name]}, is {record[name]}"
        for name in ("device_kind", "device_count", "thread_count")
        if name in last and last[name] != record[name]
    ]
    if not changes:
        return []
    return [f"resuming on another machine ({', '.join(changes)}): bits will differ"]
