"""The `checkpoint.` section and `checkpoints/STEP/`: saving while training goes on, and restoring.

Orbax writes a folder beside its final name and renames it when everything is in it, so a folder
named by a step is whole. Two faults remain, and both are met here:

    a kill while an old checkpoint is deleted   it is renamed before its files are removed
    a folder that something else has damaged    a step counts only with its metadata whole

A checkpoint holds `params`, `opt_state` and `counters` (Orbax arrays: any mesh and device count
can read them back) and `run`, a JSON record: step, data state, what was due, layer plan. Of a model
with adapters (`hybrid/model/lora.py`) `params` are the adapters alone.

Read next: `training/loop.py`, for the order in which rows and checkpoints reach the disk.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from hybrid.config import ConfigError
from hybrid.model import lora
from hybrid.workdir.config import CheckpointConfig
from hybrid.workdir.metrics import METRICS, read_rows

FOLDER = "checkpoints"
_COUNTERS = ("step", "skipped", "bad_in_a_row")
_DELETING = "deleting-"
_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"


# --- Finding ---------------------------------------------------------------------------------


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of all sound checkpoints, in order."""
    folder = workdir / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in entries if path.name.isdecimal() and is_sound(path))


def is_sound(path: pathlib.Path) -> bool:
    """Whether Orbax committed the checkpoint and its metadata can be read."""
    try:
        committed = json.loads((path / "_CHECKPOINT_METADATA").read_text())
        record = json.loads((path / "run" / "metadata").read_text())
    except (OSError, ValueError):
        return False
    has_arrays = all((path / item / "_METADATA").is_file() for item in ("params", "opt_state"))
    is_committed = bool(committed.get("commit_timestamp_nsecs"))
    return has_arrays and is_committed and str(record["step"]) == path.name


def best_step(workdir: pathlib.Path, available: Sequence[int]) -> int | None:
    """The step of `available` with the lowest eval/loss in metrics.jsonl; None without one."""
    losses = {
        row["step"]: row["eval/loss"]
        for row in read_rows(workdir / METRICS, "eval/loss")
        if row.get("eval/loss") is not None and row["step"] in available
    }
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def find_step(workdir: pathlib.Path, which: str = "latest") -> int:
    """The step that `latest`, `best` or a number names.  Raises: ConfigError if it isn't there."""
    if not workdir.is_dir():
        raise ConfigError("--workdir", "no such folder", str(workdir), "the workdir of a run")
    available = checkpoint_steps(workdir)
    if not available:
        raise ConfigError("--workdir", "holds no checkpoint", str(workdir), "the workdir of a run")
    if which == "latest":
        return available[-1]
    if which == "best":
        best = best_step(workdir, available)
        if best is None:
            raise ConfigError("--checkpoint", "no checkpoint was evaluated", which, "latest, STEP")
        return best
    if which.isdecimal() and int(which) in available:
        return int(which)
    accepted = "latest, best or one of " + ", ".join(map(str, available))
    raise ConfigError("--checkpoint", "no such checkpoint", which, accepted)


# --- Reading ---------------------------------------------------------------------------------


def read_record(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """The JSON record of a checkpoint."""
    return json.loads((workdir / FOLDER / str(step) / "run" / "metadata").read_text())


def restore_params(workdir: pathlib.Path, which: str, abstract_params: Any) -> tuple[Any, int]:
    """The parameters of a checkpoint, placed as `abstract_params`, and its step.

    Args:
      which: `latest`, `best` or a step as text.
      abstract_params: tree of ShapeDtypeStructs with the shardings of the arrays.
    Raises: ConfigError for a workdir or checkpoint that isn't there.
    """
    step = find_step(workdir, which)
    return _restore(workdir, step, {"params": abstract_params})["params"], step


def restore_state(workdir: pathlib.Path, step: int, abstract_state: Any, base: Any = None) -> Any:
    """The TrainState of a checkpoint, placed as `abstract_state`.

    base: the parameters that adapters belong to; None for a model without adapters.
    """
    restored = _restore(workdir, step, _items(abstract_state))
    params = restored["params"]
    return dataclasses.replace(
        abstract_state,
        params=params if base is None else lora.with_adapters(base, params),
        opt_state=restored["opt_state"],
        **restored["counters"],
    )


def _items(state: Any) -> dict[str, Any]:
    counters = {name: getattr(state, name) for name in _COUNTERS}
    params = lora.adapters(state.params) if lora.has_adapters(state.params) else state.params
    return {"params": params, "opt_state": state.opt_state, "counters": counters}


def _restore(workdir: pathlib.Path, step: int, items: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp  # here and below: --help is faster without it

    targets = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        path = (workdir / FOLDER / str(step)).resolve()
        return dict(checkpointer.restore(path, args=ocp.args.Composite(**targets)).items())


# --- Writing ---------------------------------------------------------------------------------


class Checkpoints:
    """Writes the checkpoints of a run and deletes old ones, all from the caller's thread.

    At most one save is under way; the next waits for it. Old checkpoints are deleted when a
    newer one is known to be whole, that is at the next save and at `finish`.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig):
        import orbax.checkpoint as ocp

        self._args, self._writer = ocp.args, ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._workdir, self._config = workdir, config
        self._folder = (workdir / FOLDER).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._remove_leftovers()

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts a save; `state`'s buffers may be donated as soon as this returns."""
        self.finish()
        path = self._folder / str(step)
        remove(path)  # a damaged one
        args = self._args
        items = {name: args.StandardSave(tree) for name, tree in _items(state).items()}
        run = args.JsonSave({"step": step, **record})
        self._writer.save(path, args=args.Composite(run=run, **items))
        if not self._config.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Returns when the save under way is committed and what is too old is deleted."""
        self._writer.wait_until_finished()
        if jax.process_index() == 0:
            available = checkpoint_steps(self._workdir)
            keep = {*available[-self._config.keep :], best_step(self._workdir, available)}
            for step in available:
                if step not in keep:
                    remove(self._folder / str(step))

    def close(self) -> None:
        """Ends the writer's threads; a save under way is finished first."""
        self._writer.close()

    def _remove_leftovers(self) -> None:
        """Removes what a killed run was writing or deleting, and emptied steps."""
        for path in self._folder.iterdir():
            leftover = path.name.startswith(_DELETING) or _ORBAX_TEMPORARY in path.name
            if leftover or (path.name.isdecimal() and not is_sound(path)):
                remove(path)


def remove(path: pathlib.Path) -> None:
    """Deletes a folder if it exists: renamed first, so that no step is ever there in part."""
    if not path.exists():
        return
    if not path.name.startswith(_DELETING):
        doomed = path.with_name(_DELETING + path.name)
        remove(doomed)
        path = path.rename(doomed)
    shutil.rmtree(path)
