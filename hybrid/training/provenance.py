"""`config.json` and `provenance.json`: enough to repeat a run, and to refuse a wrong resume.

A workdir that holds a checkpoint is resumed by the same command. What may differ then is listed
in `MAY_CHANGE`; a larger `training.num_steps` may too. Everything else would make the rows of one
run come from two, and is refused by its key before anything is written.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from hybrid.config import ConfigError, flatten
from hybrid.training.metrics import write_atomically

CONFIG, PROVENANCE = "config.json", "provenance.json"
MAY_CHANGE = ("training.log_every", "eval.", "checkpoint.", "mesh.")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


# --- config.json -----------------------------------------------------------------------------


def write_config(workdir: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes the resolved config, nested as its sections are."""
    write_atomically(workdir / CONFIG, json.dumps(values, indent=2) + "\n")


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of the run in `workdir`.  Raises: ConfigError if there is none to read."""
    try:
        return json.loads((workdir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        accepted = "the workdir of a run"
        raise ConfigError("--workdir", "holds no config.json", str(workdir), accepted) from None


def check_resume(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Whether a run of config `before` may go on under config `now` (both nested).

    Returns: warnings, a line each.
    Raises: ConfigError naming the first key that differs and may not.
    """
    # Through JSON, so that tuples and lists are alike.
    old, new = (flatten(json.loads(json.dumps(values))) for values in (before, now))
    warnings = []
    for name in {**old, **new}:
        was, is_now = old.get(name), new.get(name)
        if was == is_now or name.startswith(MAY_CHANGE):
            continue
        if name == "training.num_steps" and is_now > was:
            if new["optimizer.schedule"] != "constant" or new["optimizer.warmup_fraction"]:
                warnings.append(f"the schedule changes: training.num_steps was {was}, is {is_now}")
            continue
        raise _differs(name, was, is_now)
    return warnings


def _differs(name: str, was: Any, is_now: Any) -> ConfigError:
    accepted = f"{was!r}, or another workdir"
    if name == "training.num_steps":
        accepted = f"at least {was}, or another workdir"
    shown = "nothing" if is_now is None else is_now
    return ConfigError(name, "differs from the run in the workdir", shown, accepted)


# --- provenance.json -------------------------------------------------------------------------


def collect(fingerprint: str, command: list[str] | None = None) -> dict[str, Any]:
    """Where and from what a run is made.  `fingerprint` is that of its data."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in LIBRARIES},
        "hybrid": version("hybrid-attention"),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "thread_count": thread_count(),
        "data_fingerprint": fingerprint,
        "command": sys.argv if command is None else command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the code that runs, with `+` if files differ from it; None outside of git."""
    here = pathlib.Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", __file__):  # installed inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def thread_count() -> int:
    """Cores that this process may use: the size of XLA's thread pool on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_provenance(workdir: pathlib.Path, now: Mapping[str, Any], resumed_at: int | None) -> None:
    """Writes provenance.json; a resume is added to the list `resumes` of the first start."""
    record = dict(now)
    before = read_provenance(workdir)
    if resumed_at is not None and before:
        resume = {"step": resumed_at, **now}
        record = {**before, "resumes": [*before.get("resumes", []), resume]}
    write_atomically(workdir / PROVENANCE, json.dumps(record, indent=2) + "\n")


def read_provenance(workdir: pathlib.Path) -> dict[str, Any]:
    """The provenance of the run in `workdir`, empty if there is none."""
    try:
        return json.loads((workdir / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def machine_warning(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One line if the last start had other devices or threads, under which bits differ."""
    if not before:
        return None
    last = before["resumes"][-1] if before.get("resumes") else before
    names = ("device_kind", "device_count", "thread_count")
    changed = [f"{n} was {last.get(n)}, is {now[n]}" for n in names if last.get(n) != now[n]]
    if not changed:
        return None
    return "bits will differ from an uninterrupted run: " + ", ".join(changed)
