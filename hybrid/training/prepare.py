"""Everything that can be wrong, found before anything is written.

`prepare` opens data, mesh and program, looks into the workdir and decides whether this start is a
new run, a resume or that of a finished one. It creates nothing but the token cache, which is
written whole or not at all; `loop.py` writes the rest afterwards.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Any

from jax.sharding import Mesh

from hybrid.config import ConfigError
from hybrid.costs.peaks import peak_flops
from hybrid.data import pipeline
from hybrid.data.tasks import Examples
from hybrid.experiment import Experiment
from hybrid.loading import initial
from hybrid.sharding import make_mesh
from hybrid.training import step
from hybrid.training.progress import Progress
from hybrid.training.window_schedule import Stage, stages
from hybrid.workdir import checkpoint, provenance
from hybrid.workdir.metrics import METRICS, read_rows


@dataclasses.dataclass(frozen=True)
class Resume:
    """The checkpoint that a start goes on from.

    Attributes:
      step: finished steps.
      record: the checkpoint's JSON record.
      evaluation_due: whether the step has still to be evaluated.
    """

    step: int
    record: dict[str, Any]
    evaluation_due: bool


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
      stages: of the window schedule.  program: of the last one; states fit all of them.
      rows: training rows.  held_out: what is evaluated on.
      resume: the checkpoint to go on from, None for a new run.
      provenance: of this start.
      peak_flops: of all devices together, None without MFU.
    """

    experiment: Experiment
    workdir: pathlib.Path
    mesh: Mesh
    stages: tuple[Stage, ...]
    program: step.Program
    rows: pipeline.Rows
    held_out: pipeline.EvalDocuments | Examples
    resume: Resume | None
    provenance: dict[str, Any]
    peak_flops: float | None


def prepare(experiment: Experiment, workdir: pathlib.Path, progress: Progress) -> Prepared | None:
    """Checks and opens all that a run needs; None if the run in the workdir is finished.

    Raises: ConfigError naming the key that is wrong, with nothing created or changed.
    """
    mesh = make_mesh(experiment.mesh)
    experiment.check_mesh(mesh)
    check_writable(workdir)
    training, model = experiment.training, experiment.model
    schedule = stages(model, training)
    program = step.build(model, training.step, experiment.optimizer, mesh, experiment.lora)
    resume = _find_resume(experiment, workdir, progress)
    if resume and resume.step >= training.num_steps and not resume.evaluation_due:
        progress.say(f"finished: all {training.num_steps} steps are done in {workdir}")
        return None
    if experiment.init_from and (resume is None or experiment.lora.rank):
        initial.check_initial(experiment)
    # First what is evaluated: it is only tokenized, while the rows leave a cache on disk.
    held_out = pipeline.open_held_out(
        experiment.data,
        vocab_size=model.vocab_size,
        context_length=experiment.eval.lengths(training.context_length)[0],
    )
    _check_held_out(held_out)
    rows = pipeline.open_rows(
        experiment.data,
        context_length=training.context_length,
        seed=training.seed,
        vocab_size=model.vocab_size,
        progress=progress.tokenizing,
    )
    if resume:
        _check_fingerprint(experiment, resume.record, rows.fingerprint)
    now = provenance.describe(rows.fingerprint, sys.argv)
    for warning in provenance.changed_machine(workdir, now) if resume else ():
        progress.say(f"warning: {warning}")
    devices = list(mesh.devices.flat)
    peak = peak_flops(training.peak_flops, model.dtype, devices)
    return Prepared(experiment, workdir, mesh, schedule, program, rows, held_out, resume, now, peak)


def _find_resume(
    experiment: Experiment, workdir: pathlib.Path, progress: Progress
) -> Resume | None:
    saved = checkpoint.checkpoint_steps(workdir)
    if not saved:
        return None
    for warning in provenance.check_resume(workdir, experiment):
        progress.say(f"warning: {warning}")
    last = saved[-1]
    record = checkpoint.read_record(workdir, last)
    rows = read_rows(workdir / METRICS, "eval/loss")
    evaluated = any(row["step"] == last for row in rows)
    return Resume(last, record, bool(record["evaluation_due"]) and not evaluated)


def check_writable(workdir: pathlib.Path) -> None:
    """Raises: ConfigError unless the folder is there or can be made, and can be written to."""
    folder = workdir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError("--workdir", "is not a folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError("--workdir", "cannot be written to", str(folder))


def _check_fingerprint(experiment: Experiment, record: dict[str, Any], fingerprint: str) -> None:
    before = record["data_fingerprint"]
    if before != fingerprint:
        name = "data.paths" if experiment.data.paths else "data.source"
        problem = "the text is another than that of the run in the workdir"
        accepted = f"fingerprint {before}, or another workdir"
        raise ConfigError(name, problem, f"fingerprint {fingerprint}", accepted)


def _check_held_out(documents: pipeline.EvalDocuments | Examples) -> None:
    if isinstance(documents, Examples):
        return
    context_only = documents.bos == "never"
    if not any(len(tokens) > context_only for tokens in documents.tokens):
        problem = "holds out no text to evaluate on"
        raise ConfigError("data.eval_fraction", problem, accepted="a larger part, or eval_paths")
