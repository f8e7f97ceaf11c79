"""What a run was: `config.json` and `provenance.json`, and what may differ when it resumes."""

import dataclasses
import json
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid.config import ConfigError
from hybrid.data.mixed import errors_of
from hybrid.experiment import Experiment
from hybrid.origin import CONFIG, PROVENANCE, upgraded
from hybrid.process.compiler import FLAG_VARIABLES
from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath

# Keys that a resumed run may set anew, since no number of the run depends on them; of
# training.num_steps, only more.
MAY_CHANGE = (
    "training.log_every",
    "training.profile_",
    "training.tensorboard",
    "training.peak_flops",
    "training.max_bad_steps",
    "eval.",
    "checkpoint.",
    "mesh.",
    "distributed.",
    "compilation_cache.",
    "inference.",
    "model.remat",
    "data.cache_dir",
)
# Those too, but sums are formed in another order.
MAY_CHANGE_BITS = (
    "training.num_microbatches",
    "model.unroll",
    "model.attention",
    "xla.tpu_flags",
    "xla.gpu_flags",
    "xla.cpu_flags",
)
# What these name is compared by its content, wherever it lies.
COMPARED_BY_CONTENT = ("data.paths", "data.eval_paths", "data.tokenizer", "init_from")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(
    workdir: AnyPath,
    identity: Mapping[str, Any],
    command_line: Sequence[str],
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything outside the config that decides a run's numbers or tells where they come from.

    Args:
      identity: the fingerprints of text and tokenizer.
      flags: of the compiler, from the config; those of the environment are added.
    """
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
        "xla_flags": {"config": list(flags), **{n: os.environ.get(n) for n in FLAG_VARIABLES}},
        **identity,
        "command_line": list(command_line),
        # From where the config's paths are meant, and what has moved with the workdir.
        "directory": str(pathlib.Path.cwd()),
        "workdir": str(workdir.absolute()),
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


def write(workdir: AnyPath, experiment: Experiment, record: dict[str, Any]) -> None:
    """Writes both files; earlier starts of the run stay under `earlier`."""
    last = read_json(workdir / PROVENANCE)
    if last is not None:
        record = record | {"earlier": [*last.pop("earlier", []), last]}
    write_json(workdir / PROVENANCE, record)
    write_json(workdir / CONFIG, experiment_lib.to_dict(experiment))


def read_json(path: AnyPath) -> dict[str, Any] | None:
    """The object in a file; None without one.  Raises: ConfigError where it can't be read."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError("--workdir", f"can't be read ({error.strerror})", str(path)) from None
    except ValueError as error:
        raise ConfigError("--workdir", f"{path.name} is broken ({error})", str(path)) from None
    if not isinstance(values, dict):
        raise ConfigError("--workdir", f"{path.name} holds no object", str(path))
    return values


def read_config(workdir: AnyPath) -> dict[str, Any]:
    """The resolved config of a run, under the keys of this version.

    Raises: ConfigError if the folder is not a workdir.
    """
    if not workdir.is_dir():
        raise ConfigError("--workdir", "no such folder", str(workdir), "the workdir of a run")
    values = read_json(workdir / CONFIG)
    if values is None:
        raise ConfigError("--workdir", f"holds no {CONFIG}", str(workdir), "the workdir of a run")
    return dict(upgraded(values))


def check_resume(workdir: AnyPath, experiment: Experiment) -> list[str]:
    """Warnings about what a resumed run changes.  Raises: ConfigError for what it must not."""
    # A key that is newer than the run had its default there.
    had = config_lib.flatten(read_config(workdir))
    recorded = flattened(config_lib.updated(experiment_lib.defaults().to_dict(), had))
    current = flattened(experiment_lib.to_dict(experiment))
    warnings = []
    for name in sorted(recorded.keys() | current.keys()):
        old, new = _plain(recorded.get(name)), _plain(current.get(name))
        if old == new or name.startswith(MAY_CHANGE):
            continue
        if is_compared_by_content(name) and bool(old) == bool(new):
            continue
        if name in MAY_CHANGE_BITS:
            warnings.append(f"{name} was {old!r}, is {new!r}: bits may differ")
            continue
        if name == "training.num_steps" and (new or 0) > (old or 0):
            if experiment.optimizer.schedule != "constant":
                problem = f"{name} grew from {old} to {new}: the schedule is another one"
                warnings.append(problem)
            continue
        remedy = "it may only grow" if name == "training.num_steps" else "use another --workdir"
        accepted = f"this run has {old!r}; {remedy}"
        raise ConfigError(name, "differs from the run in --workdir", new, accepted)
    return warnings


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by dotted key, those in a list of sections as `data.mixture[0].paths`."""
    found: dict[str, Any] = {}
    for name, value in config_lib.flatten(values).items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for index, entry in enumerate(value):
                found |= config_lib.flatten(entry, f"{name}[{index}].")
        else:
            found[name] = value
    return found


def is_compared_by_content(name: str) -> bool:
    """Whether a key, as `flattened` names it, is one of COMPARED_BY_CONTENT, or a source's own."""
    return re.sub(r"mixture\[\d+\]\.", "", name) in COMPARED_BY_CONTENT


def names_the_same(workdir: AnyPath, experiment: Experiment) -> bool:
    """Whether text, tokenizer and base are named as the run has them, so that nothing is read."""
    recorded = flattened(read_config(workdir))
    current = flattened(experiment_lib.to_dict(experiment))
    named = filter(is_compared_by_content, current)
    return all(_plain(recorded.get(name)) == _plain(current[name]) for name in named)


def check_identity(
    experiment: Experiment, record: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Raises: ConfigError where text or tokenizer are not those in the record of a checkpoint."""
    data = experiment.data
    for index, (source, part) in enumerate(zip(data.mixture, data.parts, strict=True)):
        before, now = (each.get("by_source", {}) for each in (record, identity))
        alone = dataclasses.replace(experiment, data=part)
        with errors_of(index):
            check_identity(alone, before.get(source.name, {}), now.get(source.name, {}))
    corpus = "data.mixture" if data.mixture else "data.paths" if data.paths else "data.source"
    compared = {
        "tokenizer_fingerprint": ("data.tokenizer", "the tokenizer"),
        "data_fingerprint": (corpus, "the text"),
        "held_out_fingerprint": ("data.eval_paths" if data.eval_paths else corpus, "held-out text"),
    }
    changes = changed_fingerprints(record, identity)
    for name, (key, what) in compared.items():
        if name in changes:
            before, now = changes[name]
            problem = f"{what} is another than that of the run in the workdir"
            accepted = f"fingerprint {before}, or another workdir"
            raise ConfigError(key, problem, f"fingerprint {now}", accepted)


def changed_fingerprints(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """{name: (before, now)} of the fingerprints that both records have and that differ."""
    pairs = {name: (before.get(name), value) for name, value in now.items()}
    return {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def changed_machine(workdir: AnyPath, record: dict[str, Any]) -> list[str]:
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
