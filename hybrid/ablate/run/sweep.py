"""Runs a sweep: every run that is not finished yet, one after the other.

A run is an ordinary workdir. It is trained (or resumed where it was stopped), its last checkpoint
is scored, `scores.npz` and `evaluation.json` are written, and it is asked the benchmarks of
`evaluations`, each with files of its own. A run with all of these is finished and is never touched
again; benchmarks that a sweep gains later are asked of the runs that are there. A run that fails
leaves `error.txt` and is tried again by the next start; the others go on. All mistakes in a sweep's
config are refused before anything is written.
"""

import dataclasses
import functools
import json
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid import origin
from hybrid.ablate.config import NAME, Overrides, SweepConfig
from hybrid.ablate.run.cells import SweepRun, cell_name, cells, crossed, runs
from hybrid.ablate.run.evaluations import Evaluation, ask, benchmarks, evaluations
from hybrid.ablate.run.match import train_flops
from hybrid.ablate.run.progress import SweepProgress
from hybrid.config import ConfigError
from hybrid.data import pipeline, sources
from hybrid.data.config import DataConfig
from hybrid.data.mixed import joined_fingerprint
from hybrid.evaluation.target import Target, check_fixed, check_shapes, evaluate_target
from hybrid.evaluation.token_records import save_records
from hybrid.process.files import check_writable, write_json, write_whole
from hybrid.process.lock import FILE as LOCK
from hybrid.process.lock import WriterLock
from hybrid.sharding import make_mesh
from hybrid.training import loop
from hybrid.workdir import checkpoint, provenance

SWEEP = "sweep.json"
# What a trained run may change while it goes on, and its scores don't depend on.
OF_TRAINING = ("base.training.", "base.optimizer.", "base.checkpoint.", "base.mesh.")
SCORED_AT = "base.training.context_length"
GROWS = ("seeds", "evaluations")  # entries may be added to these
Texts = dict[str, Mapping[str, str | None]]  # of each cell, by its folder
EVALUATION, SCORES, ERROR = "evaluation.json", "scores.npz", "error.txt"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: its config, its name, its folder and all its runs.

    Attributes:
      trained_step: with `trained` a run, the checkpoint that all cells are scored at.
    """

    config: SweepConfig
    name: str
    folder: pathlib.Path
    runs: tuple[SweepRun, ...]
    trained_step: int | None = None

    def is_scored(self, run: SweepRun) -> bool:
        """Whether a run is trained and its raw rows are on the disk."""
        return (self.folder / run.folder / EVALUATION).is_file()

    def lacks(self, run: SweepRun) -> list[Evaluation]:
        """The benchmarks whose results are still missing, in order."""
        folder = self.folder / run.folder
        return [each for each in evaluations(self.config) if not each.result(folder).is_file()]

    def is_finished(self, run: SweepRun) -> bool:
        """Whether nothing is left to do for a run."""
        return self.is_scored(run) and not self.lacks(run)

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds: enough to make the sweep again."""
        values = json.loads(json.dumps(config_lib.to_dict(self.config)))
        return {"name": self.name, "config": values, "trained_step": self.trained_step}


def from_config(config: SweepConfig, name: str, folder: pathlib.Path) -> Sweep:
    """The sweep of a config, for a folder that is new or its own; only configs are read.

    Raises: ConfigError for a cell that can't be built, or a folder that holds something else.
    """
    config = with_trained_base(config)
    sweep = Sweep(config, name, folder, runs(config))
    _check_folder(sweep)
    return dataclasses.replace(sweep, trained_step=_trained_step(sweep))


def read(folder: pathlib.Path) -> Sweep:
    """The sweep that a folder holds.  Raises: ConfigError where there is none."""
    accepted = "the folder of a sweep"
    if not folder.is_dir():
        raise ConfigError("--workdir", "no such folder", str(folder), accepted)
    held = provenance.read_json(folder / SWEEP)
    if held is None:
        raise ConfigError("--workdir", f"holds no {SWEEP}", str(folder), accepted)
    config = config_lib.build(SweepConfig, upgraded(held["config"]))
    return Sweep(config, held["name"], folder, runs(config))


def run(sweep: Sweep, progress: SweepProgress) -> None:
    """Does the unfinished runs.

    Raises: ConfigError for what a run could not use, or text that is not that of the cells
      before; Preempted or KeyboardInterrupt after a signal.
    """
    with WriterLock(sweep.folder) as lock:
        texts = check_inputs(sweep)
        lock.claim()
        held = sweep.to_dict() | {"texts": texts}
        write_json(sweep.folder / SWEEP, held, indent=1, allow_nan=False)
        _run_unfinished(sweep, texts, progress)


def _run_unfinished(sweep: Sweep, texts: Texts, progress: SweepProgress) -> None:
    unfinished = [run for run in sweep.runs if not sweep.is_finished(run)]
    progress.begin([train_flops(run.experiment) for run in unfinished], len(sweep.runs))
    for sweep_run in unfinished:
        progress.next_run(sweep_run.label)
        folder = sweep.folder / sweep_run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).unlink(missing_ok=True)
        try:
            scores = _train_and_score(sweep, sweep_run, texts[_cell_folder(sweep_run)], progress)
        except Exception as error:  # the others go on
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            trace = "".join(traceback.format_exception(error))
            write_whole(folder / ERROR, f"{reason}\n\n{trace}")
            progress.end_run(f"failed: {reason[:200]}", failed=True)
        else:
            progress.end_run(scores)


def _train_and_score(
    sweep: Sweep, run: SweepRun, text: Mapping[str, str | None], progress: SweepProgress
) -> str:
    """Does what is left of a run; returns its new scores for a line."""
    folder, scores = sweep.folder / run.folder, []
    is_scored = sweep.is_scored(run)
    if not (sweep.config.trained or is_scored):
        loop.run(run.experiment, folder, progress)
    target = _target(sweep, run, text)
    if not is_scored:
        scores.append(f"loss {_score(target, folder):.4f}")
    for evaluation in sweep.lacks(run):
        show = functools.partial(progress.asking, evaluation.name)
        found = ask(evaluation, target, folder, run.folder, show)
        scores.append(f"{evaluation.name} {found.score:.1f}")
    return ", ".join(scores)


def _target(sweep: Sweep, run: SweepRun, text: Mapping[str, str | None]) -> Target:
    """The trained run, or the folder of `trained` under the run's config.

    Raises: ConfigError for text that is not that of the cells before.
    """
    source = origin.find(sweep.config.trained or sweep.folder / run.folder)
    step, split, record = None, "all", {}
    if source.is_run:
        step, split = sweep.trained_step or checkpoint.find_step(source.path), "eval"
        record = checkpoint.read_record(source.path, step)
        if not sweep.config.trained:
            _check_text(text, {name: record.get(name) for name in text})
    return Target(run.experiment, source, step, sweep.name, split, record=record)


def _score(target: Target, folder: pathlib.Path) -> float:
    """Writes a run's raw rows and losses; returns the loss at the first length."""
    result = evaluate_target(target)
    save_records(folder / SCORES, result.records_by_length)
    values = result.to_dict(step=target.step, config=target.name)
    write_json(folder / EVALUATION, values, indent=1, allow_nan=False)
    return result.at_lengths[0].loss


# --- Checks before a run ---------------------------------------------------------------------


def with_trained_base(config: SweepConfig) -> SweepConfig:
    """With `trained`, the base is that folder's model under the page's `eval.*`, and its seed.

    The text is a run's own; for a Hugging Face folder it is that of the page's base.
    Raises: ConfigError for a folder that is neither, or a cell that its parameters don't fit.
    """
    if not config.trained:
        return config
    source = origin.find(config.trained, "trained")
    if source.run is not None:
        try:
            checkpoint.find_step(source.path)
        except ConfigError as error:
            raise error.under("trained") from None
        values = {**source.run, "mesh": {}}
    else:
        values = origin.inherit(config_lib.to_dict(config.base), source)
    base = experiment_lib.from_config(values)
    scored = dataclasses.replace(base, eval=config.base.eval)
    result = dataclasses.replace(config, base=scored, seeds=(base.training.seed,))
    for cell in cells(result):
        check_fixed(base, cell.overrides)
        check_shapes(base, cell.experiment, cell.overrides)
    return result


def _trained_step(sweep: Sweep) -> int | None:
    """The step of the trained run that this sweep's cells are scored at: that of its first start.

    Raises: ConfigError where that checkpoint is gone.
    """
    if not sweep.config.trained or not origin.find(sweep.config.trained, "trained").is_run:
        return None
    pinned = (provenance.read_json(sweep.folder / SWEEP) or {}).get("trained_step")
    if pinned is None:  # of an earlier version: what its cells say
        done = [run for run in sweep.runs if sweep.is_scored(run)]
        results = (provenance.read_json(sweep.folder / run.folder / EVALUATION) for run in done)
        pinned = next((result["step"] for result in results if result), None)
    trained = pathlib.Path(sweep.config.trained)
    if pinned is None:
        return checkpoint.find_step(trained)
    try:
        return checkpoint.find_step(trained, str(pinned))
    except ConfigError as error:
        problem = f"lacks the checkpoint that the cells of --workdir are scored at: {error.problem}"
        raise ConfigError("trained", problem, error.got, error.accepted) from None


def check_inputs(sweep: Sweep) -> Texts:
    """The fingerprints of text, tokenizer or task of each cell, by its folder.

    Raises: ConfigError for devices, text, a task or a benchmark that a run could not use, and for
      text that is not what cells of this sweep have used before.
    """
    inputs: dict[tuple, dict[str, str | None]] = {}
    texts: Texts = {}
    before = (provenance.read_json(sweep.folder / SWEEP) or {}).get("texts", {})
    for run in sweep.runs:
        experiment = run.experiment
        experiment.check_mesh(make_mesh(experiment.mesh))
        longest = max(experiment.eval.lengths(experiment.training.context_length))
        use = experiment.data, experiment.model.vocab_size, longest
        if use not in inputs:
            inputs[use] = _identity(*use)
        cell = _cell_folder(run)
        texts[cell] = inputs[use]
        _check_text(before.get(cell, texts[cell]), texts[cell])
    benchmarks(sweep.config, sweep.runs)
    return texts


def _cell_folder(run: SweepRun) -> str:
    return str(pathlib.PurePath(run.folder).parent)


def _identity(data: DataConfig, vocab_size: int, longest: int) -> dict[str, str | None]:
    """Fingerprints by the names that the records of checkpoints have for them."""
    held_out = pipeline.open_held_out(data, vocab_size=vocab_size, context_length=longest)
    if data.is_task:
        return {"task_fingerprint": held_out.fingerprint}
    names = ("corpus_fingerprint", "tokenizer_fingerprint", "held_out_fingerprint")
    identity = {name: held_out.identity[name] for name in names}
    if identity["corpus_fingerprint"] is None:  # files of their own are held out
        identity["corpus_fingerprint"] = _corpus(data, held_out)
    return identity


def _corpus(data: DataConfig, held_out: Any) -> str | None:
    """The fingerprint of all text, where what is held out does not tell it."""
    if data.mixture:
        pairs = zip(data.parts, held_out.by_source.values(), strict=True)
        return joined_fingerprint([_corpus(*pair) for pair in pairs])
    return held_out.identity["corpus_fingerprint"] or sources.documents(data).corpus


def _check_text(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Raises: ConfigError unless a cell is on the text that it, or those before, were on."""
    keys = {"tokenizer_fingerprint": "data.tokenizer", "task_fingerprint": "data.source"}
    for name, (was, got) in provenance.changed_fingerprints(before, now).items():
        what = {"corpus_fingerprint": "text"}.get(name, name.removesuffix("_fingerprint"))
        problem = f"the {what.replace('_', '-')} is another than that of the sweep's cells"
        accepted = f"they have {was}; use another --workdir"
        key = f"base.{keys.get(name, 'data.paths')}"
        raise ConfigError(key, problem, f"fingerprint {got}", accepted)


def _check_folder(sweep: Sweep) -> None:
    """Raises: ConfigError unless the folder is new, empty, or this sweep's (GROWS may have)."""
    check_writable(sweep.folder, "--workdir")
    if not sweep.folder.is_dir() or not {path.name for path in sweep.folder.iterdir()} - {LOCK}:
        return
    if provenance.read_json(sweep.folder / SWEEP) is None:
        accepted = "a new folder, or that of this sweep"
        raise ConfigError("--workdir", "holds something else", str(sweep.folder), accepted)
    # Built anew, so that keys which came since have the defaults that its runs trained with.
    before, now = (
        config_lib.flatten(each.to_dict()["config"]) for each in (read(sweep.folder), sweep)
    )
    by_content = {f"base.{name}" for name in provenance.COMPARED_BY_CONTENT} | {"trained"}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        grows = name in GROWS and all(entry in (new or ()) for entry in old or ())
        is_unused = sweep.config.trained and name.startswith(OF_TRAINING) and name != SCORED_AT
        is_compared = name in by_content and bool(old) == bool(new)
        is_free = name == "base.data.cache_dir"
        if old != new and not (grows or is_unused or is_compared or is_free):
            problem = "differs from the sweep in --workdir"
            accepted = f"it has {old!r}; use another --workdir"
            raise ConfigError(name, problem, new, accepted)


# --- Sweeps of earlier versions ---------------------------------------------------------------


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in a `sweep.json` of an earlier version; cells keep their names and folders.

    Overrides may need another key more than they had (see `origin.upgraded`), which values of an
    axis cannot have: crossed axes become the cells that they stand for.
    """
    axes, listed = config["axes"], config["cells"]
    if any(_is_old({key: values[0]}) for key, values in axes):
        axes, listed = [], crossed(axes)
    return {
        **config,
        "base": origin.upgraded(config["base"]),
        "axes": axes,
        "cells": [_named(cell) for cell in listed],
        "arms": [[name, _overrides(overrides)] for name, overrides in config["arms"]],
        "baseline": _overrides(config["baseline"]),
    }


def _overrides(overrides: Overrides) -> Overrides:
    return config_lib.flatten(origin.upgraded(config_lib.updated({}, overrides)))


def _is_old(overrides: Overrides) -> bool:
    return _overrides(overrides) != overrides


def _named(cell: Overrides) -> Overrides:
    """A cell's overrides, with the name that it had where they change."""
    return {NAME: cell_name(cell), **_overrides(cell)} if _is_old(cell) else cell
