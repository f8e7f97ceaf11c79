"""Reads a sweep's workdirs back: one `Run` each, and what the report needs besides.

What a run cost is computed from its config; what it found is read from its files. Nothing here
needs a run to be finished.
"""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from hybrid import config as config_lib
from hybrid import model
from hybrid.ablate import results, summary
from hybrid.ablate.cells import Planned
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.match import train_flops
from hybrid.ablate.results import Run
from hybrid.ablate.sweep import ERROR, EVALUATION, SCORES, Sweep
from hybrid.data.tasks import TASKS
from hybrid.evaluation.token_records import TokenRecords as Scores
from hybrid.evaluation.token_records import load_records
from hybrid.experiment import Experiment
from hybrid.origin import find
from hybrid.plan import report as plan_report
from hybrid.workdir import metrics, provenance


def write_results(sweep: Sweep) -> dict[str, Any]:
    """Writes results.json and results.csv of a sweep as it stands; returns the former."""
    runs = [read_run(sweep, planned) for planned in sweep.runs]

    def scores_of(run: Run) -> Mapping[int, Scores]:
        path = sweep.folder / run.workdir / SCORES
        return load_records(path) if path.is_file() else {}

    found = summary.summarize(runs, scores_of, sweep.config.baseline or None)
    return results.write(sweep.folder, about(sweep), runs, found)


def about(sweep: Sweep) -> dict[str, Any]:
    """What stands before the cells in results.json."""
    config = sweep.config
    return {
        "name": sweep.name,
        "match": config.match,
        "baseline": config.baseline or None,
        "axes": config.axes,
        "seeds": config.seeds,
        "learning_rates": config.learning_rates,
        "trained": config.trained or None,
        "machine": _machine(sweep),
    }


def _machine(sweep: Sweep) -> str:
    """Where the first run was trained; a report drawn elsewhere says the same."""
    for planned in sweep.runs:
        held = provenance.read_json(sweep.folder / planned.folder / provenance.PROVENANCE)
        if held:
            return f"{held['device_count']} × {held['device_kind']}, {held['thread_count']} threads"
    return ""


def read_run(sweep: Sweep, planned: Planned) -> Run:
    """One run as it stands in its workdir."""
    folder = sweep.folder / planned.folder
    rows = metrics.read_rows(folder / metrics.METRICS)
    training = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "eval/loss" in row]
    status, error = _status(sweep, planned)
    return Run(
        name=planned.cell.name,
        arm=planned.cell.arm,
        overrides=planned.cell.overrides,
        seed=planned.seed,
        learning_rate=planned.learning_rate,
        status=status,
        error=error,
        metrics=evaluated[-1] if evaluated else _evaluation(folder, status),
        workdir=planned.folder,
        tokens=training[-1]["tokens_seen"] if training else None,
        tokens_per_second=_speed(planned.experiment, training),
        curve=[
            (row["step"], train_flops(planned.experiment, row["step"]), row["eval/loss"])
            for row in evaluated
        ],
        changed=planned.cell.changed,
        **costs(sweep.config, planned),
    )


def costs(config: SweepConfig, planned: Planned) -> dict[str, Any]:
    """Fields of a Run that follow from its config alone."""
    experiment = planned.experiment
    plan = model.layer_plan(experiment.model)
    context = config.cache_context or experiment.training.context_length
    trained_at = plan_report(experiment)
    data, vocab_size = experiment.data, experiment.model.vocab_size
    return {
        "task": data.source if data.is_task else "text",
        "chance": TASKS[data.source].chance(data.task, vocab_size) if data.is_task else None,
        "num_params": trained_at.num_params,
        "flops_per_token": trained_at.flops_per_token,
        "num_steps": None if _is_pretrained(config) else experiment.training.num_steps,
        "train_flops": None if config.trained else train_flops(experiment),
        "kv_cache_bytes": plan_report(experiment, context).kv_cache_bytes["total"],
        "cache_context": context,
        "reach": plan.reach,
        "letters": plan.letters,
    }


def _status(sweep: Sweep, planned: Planned) -> tuple[str, str | None]:
    if sweep.is_finished(planned):
        return results.FINISHED, None
    failure = sweep.folder / planned.folder / ERROR
    if failure.is_file():
        return results.FAILED, failure.read_text().partition("\n")[0]
    return results.PENDING, None


def _evaluation(folder: pathlib.Path, status: str) -> dict[str, Any] | None:
    """The evaluation row of a run that was not trained here: as training's, of the first length."""
    if status != results.FINISHED:
        return None
    held = provenance.read_json(folder / EVALUATION) or {}
    found = config_lib.flatten(held.get("by_context", [held])[0])
    names = ("loss", "perplexity", "bits_per_byte", "accuracy")
    return {"step": found["step"]} | {
        f"eval/{name}": found[name] for name in names if name in found
    }


def _speed(experiment: Experiment, training: list[dict[str, Any]]) -> float | None:
    """Median tokens a second; the first row waited for the compiler's leftovers.

    Metrics count predicted tokens. Rows of a task predict a few, so all their inputs count here.
    """
    if not training:
        return None
    speed = statistics.median(row["tokens_per_second"] for row in training[1:] or training)
    if experiment.data.is_task:
        inputs = experiment.training.batch_size * experiment.training.context_length
        speed *= inputs * training[-1]["step"] / training[-1]["tokens_seen"]
    return speed


def _is_pretrained(config: SweepConfig) -> bool:
    return bool(config.trained) and not find(config.trained).is_run
