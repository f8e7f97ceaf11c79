"""The costs and scores of one run: an entry of results.json.

Costs are computed from the run's config; scores are read from its files, finished or not.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid import config as config_lib
from hybrid import model
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.run.cells import SweepRun
from hybrid.ablate.run.evaluations import evaluations
from hybrid.ablate.run.match import train_flops
from hybrid.ablate.run.sweep import ERROR, EVALUATION, Sweep
from hybrid.data.tasks import TASKS
from hybrid.experiment import Experiment
from hybrid.origin import find
from hybrid.plan import report as plan_report
from hybrid.workdir import metrics, provenance

FINISHED, FAILED, PENDING = "finished", "failed", "pending"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One run of a sweep, a `SweepRun` with its results. Unknown figures are None.

    Attributes:
      status: finished, failed (with the reason in `error`) or pending.
      metrics: the last evaluation row of metrics.jsonl.
      workdir: relative to the sweep's.  task: text, mqar or needle.
      chance: of a task, the share of right answers of a model that sees no value.
      flops_per_token: forward, at the training length.  tokens: predicted tokens trained on.
      train_flops: of the whole run.  kv_cache_bytes: in all, at `cache_context` tokens.
      reach: tokens back that the stack can see; None with any global layer.
      letters: one a layer.  tokens_per_second: the median while training.
      curve: (step, train FLOPs so far, eval loss) of each evaluation.
      benchmarks: {NAME/score: the mean score of a benchmark that it was asked, 0 to 100}.
    """

    name: str
    arm: str
    overrides: Mapping[str, Any]
    seed: int
    learning_rate: float | None
    status: str
    error: str | None = None
    metrics: Mapping[str, Any] | None = None
    workdir: str = ""
    task: str = "text"
    chance: float | None = None
    num_params: int | None = None
    flops_per_token: float | None = None
    num_steps: int | None = None
    tokens: int | None = None
    train_flops: float | None = None
    kv_cache_bytes: int | None = None
    cache_context: int | None = None
    reach: int | None = None
    changed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    letters: str = ""
    tokens_per_second: float | None = None
    curve: Sequence[Sequence[Any]] = ()
    benchmarks: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Its final evaluation loss; None unless it finished with a finite one."""
        if self.status != FINISHED or not self.metrics:
            return None
        loss = self.metrics.get("eval/loss")
        return loss if loss is not None and math.isfinite(loss) else None


def read_run(sweep: Sweep, run: SweepRun) -> RunResult:
    """One run as it stands in its workdir."""
    folder = sweep.folder / run.folder
    rows = metrics.read_rows(folder / metrics.METRICS)
    training = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "eval/loss" in row]
    status, error = _status(sweep, run)
    return RunResult(
        name=run.cell.name,
        arm=run.cell.arm,
        overrides=run.cell.overrides,
        seed=run.seed,
        learning_rate=run.learning_rate,
        status=status,
        error=error,
        metrics=evaluated[-1] if evaluated else _evaluation(folder),
        workdir=run.folder,
        tokens=training[-1]["tokens_seen"] if training else None,
        tokens_per_second=_median_speed(run.experiment, training),
        curve=[
            (row["step"], train_flops(run.experiment, row["step"]), row["eval/loss"])
            for row in evaluated
        ],
        changed=run.cell.changed,
        benchmarks=_benchmarks(sweep.config, folder),
        **costs(sweep.config, run.experiment),
    )


def costs(config: SweepConfig, experiment: Experiment) -> dict[str, Any]:
    """Fields of a RunResult that follow from its config alone."""
    plan = model.layer_plan(experiment.model)
    context = config.cache_context or experiment.training.context_length
    trained_at = plan_report(experiment)
    data, vocab_size = experiment.data, experiment.model.vocab_size
    is_pretrained = bool(config.trained) and not find(config.trained).is_run
    return {
        "task": data.source if data.is_task else "text",
        "chance": TASKS[data.source].chance(data.task, vocab_size) if data.is_task else None,
        "num_params": trained_at.num_params,
        "flops_per_token": trained_at.flops_per_token,
        "num_steps": None if is_pretrained else experiment.training.num_steps,
        "train_flops": None if config.trained else train_flops(experiment),
        "kv_cache_bytes": plan_report(experiment, context).kv_cache_bytes["total"],
        "cache_context": context,
        "reach": plan.reach,
        "letters": plan.letters,
    }


def _status(sweep: Sweep, run: SweepRun) -> tuple[str, str | None]:
    if sweep.is_finished(run):
        return FINISHED, None
    error = sweep.folder / run.folder / ERROR
    return (FAILED, error.read_text().partition("\n")[0]) if error.is_file() else (PENDING, None)


def _evaluation(folder: pathlib.Path) -> dict[str, Any] | None:
    """The evaluation of a run that was not trained here as a row of training's, if it is done."""
    result = provenance.read_json(folder / EVALUATION)
    if result is None:
        return None
    first = config_lib.flatten(result.get("by_context", [result])[0])
    names = ("loss", "perplexity", "bits_per_byte", "accuracy")
    scores = {f"eval/{name}": first[name] for name in names if name in first}
    scores |= {f"eval/loss/{one['name']}": one["loss"] for one in first.get("by_source", ())}
    return {"step": first["step"], **scores}


def _benchmarks(config: SweepConfig, folder: pathlib.Path) -> dict[str, float]:
    results = {each.name: each.result(folder) for each in evaluations(config)}
    held = {name: provenance.read_json(path) for name, path in results.items()}
    return {f"{name}/score": result["score"] for name, result in held.items() if result}


def _median_speed(experiment: Experiment, training: list[dict[str, Any]]) -> float | None:
    """Median tokens a second, without the first row, which still includes compiling.

    Metrics count predicted tokens. Rows of a task predict a few, so all their inputs count here.
    """
    if not training:
        return None
    speed = statistics.median(row["tokens_per_second"] for row in training[1:] or training)
    if experiment.data.is_task:
        inputs = experiment.training.batch_size * experiment.training.context_length
        speed *= inputs * training[-1]["step"] / training[-1]["tokens_seen"]
    return speed
