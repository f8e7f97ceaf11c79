"""Runs a sweep: every run that is not finished yet, one after the other, then the report.

A run is an ordinary workdir. It is trained (or goes on where it was stopped), its last checkpoint
is scored, and its raw rows are written last:

    runs/CELL/seed=0/   what train.py leaves, then scores.npz and evaluation.json

so a run with `evaluation.json` is finished and is never touched again. A run that fails leaves
`error.txt`, is reported, and is tried again by the next start; the others go on. Everything that
can be wrong with a sweep is refused before anything is written.

Read first: `cells.py`.  Read next: `gather.py`, which reads the workdirs back.
"""

import dataclasses
import json
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid import origin as origins
from hybrid.ablate.cells import Planned, cells, runs
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.match import train_flops
from hybrid.ablate.progress import SweepProgress
from hybrid.ablate.upgrade import upgraded
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.evaluation.target import Target, check_fixed, check_shapes, evaluate_target
from hybrid.evaluation.token_records import save_records
from hybrid.origin import find
from hybrid.process import signals
from hybrid.process.files import write_whole
from hybrid.sharding import make_mesh
from hybrid.training import loop
from hybrid.training.prepare import check_writable
from hybrid.workdir import checkpoint, provenance

SWEEP = "sweep.json"
EVALUATION, SCORES, ERROR = "evaluation.json", "scores.npz", "error.txt"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that can run: its config, its name, its folder and all its runs."""

    config: SweepConfig
    name: str
    folder: pathlib.Path
    runs: tuple[Planned, ...]

    def is_finished(self, run: Planned) -> bool:
        """Whether a run's raw rows are on the disk."""
        return (self.folder / run.folder / EVALUATION).is_file()


def plan(config: SweepConfig, name: str, folder: pathlib.Path) -> Sweep:
    """The sweep of a config, for a folder that is new or its own; nothing is read but configs.

    Raises: ConfigError for a cell that can't be built, or a folder that holds something else.
    """
    config = of_trained(config)
    sweep = Sweep(config, name, folder, runs(config))
    _check_folder(sweep)
    return sweep


def prepare(config: SweepConfig, name: str, folder: pathlib.Path) -> Sweep:
    """`plan`, and a look at devices and data.  Raises: ConfigError for what would stop a run."""
    sweep = plan(config, name, folder)
    for planned in sweep.runs:
        planned.experiment.check_mesh(make_mesh(planned.experiment.mesh))
    _check_data(sweep)
    return sweep


def run(sweep: Sweep, progress: SweepProgress) -> None:
    """Does what is left of a sweep.  Raises: Preempted or KeyboardInterrupt after a signal."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    _write_json(sweep.folder / SWEEP, to_dict(sweep))
    left = [run for run in sweep.runs if not sweep.is_finished(run)]
    progress.begin([train_flops(run.experiment) for run in left], len(sweep.runs))
    for planned in left:
        progress.next_run(planned.label)
        try:
            loss = _run_one(sweep, planned, progress)
        except signals.Preempted:
            raise
        except Exception as error:  # the others go on
            _write_error(sweep.folder / planned.folder, error)
            progress.failed(f"{type(error).__name__}: {error}")
        else:
            progress.finished(loss)


def _run_one(sweep: Sweep, planned: Planned, progress: SweepProgress) -> float:
    """Trains and scores one run; returns its loss."""
    folder = sweep.folder / planned.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    trained = pathlib.Path(sweep.config.trained) if sweep.config.trained else folder
    if not sweep.config.trained:
        loop.run(planned.experiment, folder, progress)
    origin = find(trained)
    step = checkpoint.find_step(trained) if origin.is_run else None
    split = "eval" if origin.is_run else "all"
    result = evaluate_target(Target(planned.experiment, origin, step, sweep.name, split))
    save_records(folder / SCORES, result.records_by_length)
    _write_json(folder / EVALUATION, result.to_dict(step=step, config=sweep.name))
    return result.at_lengths[0].loss


# --- sweep.json: which sweep a folder holds --------------------------------------------------


def to_dict(sweep: Sweep) -> dict[str, Any]:
    """What `sweep.json` holds: enough to plan the sweep again."""
    values = config_lib.to_dict(sweep.config)
    return {"name": sweep.name, "config": json.loads(json.dumps(values))}


def read(folder: pathlib.Path) -> Sweep:
    """The sweep that a folder holds.  Raises: ConfigError where there is none."""
    if not folder.is_dir():
        raise ConfigError("--workdir", "no such folder", str(folder), "the folder of a sweep")
    held = provenance.read_json(folder / SWEEP)
    if held is None:
        raise ConfigError("--workdir", f"holds no {SWEEP}", str(folder), "the folder of a sweep")
    config = config_lib.build(SweepConfig, upgraded(held["config"]))
    return Sweep(config, held["name"], folder, runs(config))


def _check_folder(sweep: Sweep) -> None:
    """Raises: ConfigError unless the folder is new, empty, or this sweep's (seeds may be added)."""
    check_writable(sweep.folder)
    if not sweep.folder.is_dir() or not any(sweep.folder.iterdir()):
        return
    held = provenance.read_json(sweep.folder / SWEEP)
    if held is None:
        accepted = "a new folder, or that of this sweep"
        raise ConfigError("--workdir", "holds something else", str(sweep.folder), accepted)
    before = config_lib.flatten(upgraded(held["config"]))
    now = config_lib.flatten(to_dict(sweep)["config"])
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        grown = name == "seeds" and set(old or ()) <= set(new or ())
        unused = name == "base.training.window_schedule" and sweep.config.trained
        if old != new and not grown and not unused:
            problem = "differs from the sweep in --workdir"
            accepted = f"it has {old!r}; use another --workdir"
            raise ConfigError(name, problem, new, accepted)


# --- Checks ----------------------------------------------------------------------------------


def of_trained(config: SweepConfig) -> SweepConfig:
    """With `trained`, the base is that folder's model under the page's `eval.*`, and its seed.

    A run brings its text too; for a Hugging Face folder the page's base says which.
    Raises: ConfigError for a folder that is neither, or a cell that its parameters don't fit.
    """
    if not config.trained:
        return config
    origin = find(config.trained, "trained")
    if origin.is_run:
        _check_has_checkpoint(origin.path)
        held = provenance.read_config(origin.path) | {"mesh": {}}
    else:
        held = origins.inherit(config_lib.to_dict(config.base), origin)
    base = experiment_lib.from_config(held)
    scored = dataclasses.replace(base, eval=config.base.eval)
    found = dataclasses.replace(config, base=scored, seeds=(base.training.seed,))
    for cell in cells(found):
        check_fixed(base, cell.overrides)
        check_shapes(base, cell.experiment, cell.overrides)
    return found


def _check_has_checkpoint(folder: pathlib.Path) -> None:
    try:
        checkpoint.find_step(folder)
    except ConfigError as error:
        raise ConfigError("trained", error.problem, error.got, error.accepted) from None


def _check_data(sweep: Sweep) -> None:
    """Raises: ConfigError for text or a task that a run could not use."""
    asked = {
        (
            run.experiment.data,
            run.experiment.model.vocab_size,
            max(run.experiment.eval.lengths(run.experiment.training.context_length)),
        )
        for run in sweep.runs
    }
    for data, vocab_size, length in asked:
        pipeline.open_held_out(data, vocab_size=vocab_size, context_length=length)


# --- Files -----------------------------------------------------------------------------------


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def _write_error(folder: pathlib.Path, error: Exception) -> None:
    """The reason on the first line, then the traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    trace = "".join(traceback.format_exception(error))
    write_whole(folder / ERROR, f"{reason}\n\n{trace}")
