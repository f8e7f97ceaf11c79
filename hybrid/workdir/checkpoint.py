"""The `checkpoint.` section and `checkpoints/STEP/`: saving while training goes on, and restoring.

Orbax writes a folder beside its final name and renames it when everything is in it, so a folder
named by a step is whole. What remains is met here:

    a kill while an old checkpoint is deleted   it is renamed before its files are removed
    files that something else has damaged       checksums: a step counts as it was saved or not
    files that cannot be read just now          refused by name; nothing is concluded from them
    checkpoints that are there no longer        `saved_step`, beside them, names the newest

In an object store, where nothing can be renamed, an object that Orbax puts last makes a checkpoint
whole; it is deleted first.

A checkpoint holds `params`, `opt_state` and `counters` (Orbax arrays: any mesh and device count
can read them back) and `run`, a JSON record: step, data state, what was due, layer plan. Of a model
with adapters (`hybrid/model/lora.py`) `params` are the adapters alone.

Read next: `training/loop.py`, for the order in which rows and checkpoints reach the disk.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from hybrid.config import ConfigError
from hybrid.model import lora
from hybrid.process import group
from hybrid.process.files import as_path, write_whole
from hybrid.process.remote import AnyPath, RemotePath
from hybrid.workdir import checksums, layout
from hybrid.workdir.config import CheckpointConfig
from hybrid.workdir.metrics import METRICS, read_rows

FOLDER, SAVED = "checkpoints", "saved_step"
FORMAT = 3  # of the record; from 2 on a checkpoint has checksums, from 3 runs (layout.py)
_COUNTERS = ("step", "skipped", "bad_in_a_row")
_DELETING = "deleting-"
_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
_ORBAX_LAST = "commit_success.txt"
_log = logging.getLogger("hybrid")


# --- Finding ---------------------------------------------------------------------------------


def checkpoint_steps(workdir: AnyPath) -> list[int]:
    """The steps of all checkpoints with sound metadata, in order.

    Raises: ConfigError for a folder that is there and can't be read, here and in all below.
    """
    folder = workdir / FOLDER
    return [step for step in _all_steps(workdir) if not damage(folder / str(step))]


def newest_sound(workdir: AnyPath) -> int | None:
    """The newest checkpoint that is as it was saved, None where none was ever saved.

    A warning names newer ones that are damaged or gone.
    Raises: ConfigError where checkpoints were saved and none is sound.
    """
    saved, steps = _saved_step(workdir), _all_steps(workdir)
    problems = {}
    if saved is not None and saved not in steps and saved > max(steps, default=-1):
        problems[saved] = "it isn't there"
    for step in reversed(steps):
        problem = damage(workdir / FOLDER / str(step), contents=True)
        if not problem:
            for damaged, reason in problems.items():
                _log.warning(
                    "warning: checkpoint %d is damaged (%s): using %d", damaged, reason, step
                )
            return step
        problems[step] = problem
    if problems:
        listed = "; ".join(f"{step}: {problem}" for step, problem in problems.items())
        accepted = "what was saved, back in its place, or another --workdir"
        raise ConfigError(
            "--workdir", f"holds no sound checkpoint ({listed})", str(workdir), accepted
        )
    return None


def _all_steps(workdir: AnyPath) -> list[int]:
    """The steps that `checkpoints` names, whatever they hold, in order."""
    folder = workdir / FOLDER
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        if folder.is_symlink():
            raise _unreadable(
                folder, f"leads to {os.readlink(folder)}, which isn't there"
            ) from None
        return []
    except OSError as error:
        raise _unreadable(folder, error.strerror) from None
    steps = sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)
    return [step for step in steps if _is_whole(folder / str(step))]


def _is_whole(path: AnyPath) -> bool:
    """Whether a folder named by a step is all of a checkpoint, damaged since or not."""
    return not isinstance(path, RemotePath) or (path / _ORBAX_LAST).is_file()


def damage(path: AnyPath, *, contents: bool = False) -> str:
    """Why a checkpoint can't be used; empty for a sound one.

    contents: whether all files are compared with their checksums, not the metadata alone.
    """
    try:
        committed = _read_object(path / "_CHECKPOINT_METADATA")
        record = _read_object(path / "run" / "metadata")
        for item in ("params", "opt_state"):
            (path / item / "_METADATA").stat()
        if not committed.get("commit_timestamp_nsecs"):
            return "it was not committed"
        if str(record.get("step")) != path.name:
            return f"its record is of step {record.get('step')}"
        if contents and record.get("format", 1) > 1:
            return checksums.difference(path)
    except checksums.ABSENT as error:
        return f"{as_path(error.filename).relative_to(path)} is missing"
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except ValueError as error:
        return str(error)
    return ""


def _read_object(path: AnyPath) -> dict[str, Any]:
    """The JSON object in a file.  Raises: OSError; ValueError for anything else."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is broken")
    return values


def _unreadable(path: AnyPath, reason: str | None) -> ConfigError:
    accepted = "nothing was changed; try again when it can be"
    return ConfigError("--workdir", f"{path.name} can't be read ({reason})", str(path), accepted)


def _saved_step(workdir: AnyPath) -> int | None:
    """The newest step that was ever saved whole; None where that isn't known."""
    try:
        return int((workdir / SAVED).read_text())
    except (*checksums.ABSENT, ValueError):
        return None
    except OSError as error:
        raise _unreadable(workdir / SAVED, error.strerror) from None


def best_step(workdir: AnyPath, available: Sequence[int]) -> int | None:
    """The step of `available` with the lowest eval/loss in metrics.jsonl; None without one.

    Only those that were evaluated on the same text and in the same way as the newest compare.
    """
    ways = {step: read_record(workdir, step).get("evaluation") for step in available}
    losses = {
        row["step"]: row["eval/loss"]
        for row in read_rows(workdir / METRICS, "eval/loss")
        if row.get("eval/loss") is not None
        and row["step"] in ways
        and ways[row["step"]] == ways[max(ways)]
    }
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def find_step(workdir: AnyPath, which: str = "latest") -> int:
    """The step that `latest`, `best` or a number names, as process 0 finds it.

    Raises: ConfigError if it isn't there, or is damaged; `latest` takes the newest sound one.
    """
    return group.current().from_first(lambda: _find_step(workdir, which))


def _find_step(workdir: AnyPath, which: str) -> int:
    if not workdir.is_dir():
        raise ConfigError("--workdir", "no such folder", str(workdir), "the workdir of a run")
    if which == "latest":
        newest = newest_sound(workdir)
        if newest is None:
            accepted = "the workdir of a run"
            raise ConfigError("--workdir", "holds no checkpoint", str(workdir), accepted)
        return newest
    available = checkpoint_steps(workdir)
    if not available:
        raise ConfigError("--workdir", "holds no checkpoint", str(workdir), "the workdir of a run")
    accepted = "latest, best or one of " + ", ".join(map(str, available))
    step = best_step(workdir, available) if which == "best" else None
    if which == "best" and step is None:
        raise ConfigError("--checkpoint", "no checkpoint was evaluated", which, "latest, STEP")
    if step is None:
        step = {str(step): step for step in available}.get(which)
        if step is None:
            raise ConfigError("--checkpoint", "no such checkpoint", which, accepted)
    problem = damage(workdir / FOLDER / str(step), contents=True)
    if problem:
        raise ConfigError("--checkpoint", f"step {step} is damaged ({problem})", which, accepted)
    return step


# --- Reading ---------------------------------------------------------------------------------


def read_record(workdir: AnyPath, step: int) -> dict[str, Any]:
    """The JSON record of a checkpoint."""
    return json.loads((workdir / FOLDER / str(step) / "run" / "metadata").read_text())


def restore_params(workdir: AnyPath, which: str | int, abstract_params: Any) -> tuple[Any, int]:
    """The parameters of a checkpoint, placed as `abstract_params`, and its step.

    Args:
      which: `latest`, `best` or a step as text; or the number that `find_step` gave.
      abstract_params: tree of ShapeDtypeStructs with the shardings of the arrays.
    Raises: ConfigError for a workdir or checkpoint that isn't there.
    """
    step = which if isinstance(which, int) else find_step(workdir, which)
    return _restore(workdir, step, {"params": abstract_params})["params"], step


def restore_state(workdir: AnyPath, step: int, abstract_state: Any, base: Any = None) -> Any:
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


def _restore(workdir: AnyPath, step: int, items: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp  # here and below: --help is faster without it

    record = read_record(workdir, step)
    stored = layout.apart(items, record) if layout.is_apart(record) else items
    targets = {name: ocp.args.StandardRestore(tree) for name, tree in stored.items()}
    # How much is on the host on its way to devices, by default 96 GB. A request that is larger
    # fails: it may be a whole array, where a mesh splits it across the parts in the file, and in
    # the file numbers may be twice as wide.
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))
    read = ocp.StandardCheckpointHandler(restore_concurrent_gb=math.ceil(4 * largest / 1e9))
    handler = ocp.CompositeCheckpointHandler(**dict.fromkeys(items, read))
    with ocp.Checkpointer(handler) as checkpointer:
        path = (workdir / FOLDER / str(step)).resolve()
        found = dict(checkpointer.restore(path, args=ocp.args.Composite(**targets)).items())
    return layout.together(found, items) if layout.is_apart(record) else found


# --- Writing ---------------------------------------------------------------------------------


class Checkpoints:
    """Writes the checkpoints of a run and deletes old ones, all from the caller's thread.

    At most one save is under way; the next waits for it. Old checkpoints are deleted when a
    newer one of this run's own is known to be whole, that is at the next save and at `finish`.
    What is newer than that was not sound when the run began: it stays, and makes nothing too old.
    """

    def __init__(self, workdir: AnyPath, config: CheckpointConfig):
        import orbax.checkpoint as ocp

        options = ocp.options.AsyncOptions(post_finalization_callback=self._add_checksums)
        handler = ocp.CompositeCheckpointHandler()
        self._args, self._writer = ocp.args, ocp.AsyncCheckpointer(handler, async_options=options)
        self._workdir, self._config = workdir, config
        self._newest: int | None = None  # step that this run has begun to save
        self._path: AnyPath | None = None  # of that checkpoint
        self._folder = (workdir / FOLDER).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._is_first = group.current().is_first  # which alone deletes
        if self._is_first:
            self._remove_leftovers()

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts a save; `state`'s buffers may be donated as soon as this returns."""
        self.finish()
        path = self._path = self._folder / str(step)
        if self._is_first:
            remove(path)  # a damaged one
        args = self._args
        items = {name: args.StandardSave(tree) for name, tree in _items(state).items()}
        run = args.JsonSave({"step": step, "format": FORMAT, **record})
        self._writer.save(path, args=args.Composite(run=run, **items))
        self._newest = step
        if not self._config.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Returns when the save under way is committed and what is too old is deleted."""
        self._writer.wait_until_finished()
        if self._newest is None or not self._is_first:
            return
        write_whole(self._workdir / SAVED, f"{self._newest}\n")
        available = [step for step in checkpoint_steps(self._workdir) if step <= self._newest]
        keep = {*available[-self._config.keep :], best_step(self._workdir, available)}
        for step in available:
            if step not in keep:
                remove(self._folder / str(step))

    def close(self) -> None:
        """Ends the writer's threads; a save under way is finished first."""
        self._writer.close()

    def _add_checksums(self) -> None:
        """Called when all files of the save under way are written, before it is made whole."""
        if not self._is_first:
            return
        if isinstance(self._path, RemotePath):
            checksums.write(self._path)
            return
        for path in self._folder.iterdir():
            if _ORBAX_TEMPORARY in path.name:
                checksums.write(path)

    def _remove_leftovers(self) -> None:
        """Removes what a killed run was writing or deleting; a damaged step stays where it is."""
        if not self._folder.is_dir():
            return
        damaged = str(_saved_step(self._workdir))  # has lost the object that made it whole
        for path in self._folder.iterdir():
            is_leftover = path.name.startswith(_DELETING) or _ORBAX_TEMPORARY in path.name
            if is_leftover or (path.name != damaged and not _is_whole(path)):
                remove(path)


def remove(path: AnyPath) -> None:
    """Deletes a folder if it exists: no step is ever there in part."""
    if isinstance(path, RemotePath):
        (path / _ORBAX_LAST).unlink(missing_ok=True)
        path.rmtree(missing_ok=True)
        return
    if not path.exists():
        return
    if not path.name.startswith(_DELETING):
        doomed = path.with_name(_DELETING + path.name)
        remove(doomed)
        path = path.rename(doomed)
    shutil.rmtree(path)
