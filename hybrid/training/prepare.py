"""Everything that can be wrong, found before anything is written.

`prepare` opens data, mesh and program, looks into the workdir and decides whether this start is a
new run, a resume or that of a finished one. It creates nothing but the token cache, which is
written whole or not at all; `loop.py` writes the rest afterwards.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hybrid.config import ConfigError
from hybrid.costs.peaks import peak_flops
from hybrid.data import pipeline
from hybrid.data.mixed import MixedDocuments, errors_of
from hybrid.data.tasks import Examples
from hybrid.experiment import Experiment, to_dict
from hybrid.loading import initial
from hybrid.origin import TOKENIZER
from hybrid.process import compiler, group
from hybrid.process.files import as_path, check_writable
from hybrid.process.remote import AnyPath, RemotePath
from hybrid.sharding import make_mesh
from hybrid.training import step
from hybrid.training.config import TrainingConfig
from hybrid.training.progress import Progress
from hybrid.training.window_schedule import Stage, stage_at, stages
from hybrid.workdir import checkpoint, provenance
from hybrid.workdir.metrics import METRICS, Row, read_rows, rows_until

HeldOut = pipeline.EvalDocuments | MixedDocuments | Examples


@dataclasses.dataclass(frozen=True)
class Resume:
    """The checkpoint that a start goes on from.

    Attributes:
      step: finished steps.
      record: the checkpoint's JSON record.
      rows: of metrics.jsonl, those up to the step; on process 0, which writes them.
      evaluation_due: whether the step has still to be evaluated.
    """

    step: int
    record: dict[str, Any]
    rows: list[Row]
    evaluation_due: bool


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
      stages: of the window schedule.  program: of the last one; states fit all of them.
      rows: training rows.  held_out: what is evaluated on.
      identity: the fingerprints of both texts and the tokenizer.
      resume: the checkpoint to go on from, None for a new run.
      provenance: of this start.
      peak_flops: of all devices together, None without MFU.
    """

    experiment: Experiment
    workdir: AnyPath
    mesh: Mesh
    stages: tuple[Stage, ...]
    program: step.Program
    rows: pipeline.Rows
    held_out: HeldOut
    identity: dict[str, Any]
    resume: Resume | None
    provenance: dict[str, Any]
    peak_flops: float | None


def prepare(experiment: Experiment, workdir: AnyPath, progress: Progress) -> Prepared | None:
    """Checks and opens all that a run needs; None if the run in the workdir is finished.

    Of several processes, the first one decides on what it finds in the workdir.
    Raises: ConfigError naming the key that is wrong, with nothing created or changed.
    """
    processes = group.current()
    processes.check_same(_decisive(experiment))
    mesh = make_mesh(experiment.mesh)
    experiment.check_mesh(mesh)
    check_writable(workdir, "--workdir")
    _check_served(experiment, workdir)
    processes.check_shared(workdir)
    training, model = experiment.training, experiment.model
    flags = experiment.xla.flags(mesh.devices.flat[0].platform)
    compiler.check_flags(flags, mesh.local_devices[0])
    schedule = stages(model, training)
    program = step.of_experiment(experiment, mesh)
    resume = _shared_resume(experiment, workdir, progress)
    finished = f"finished: all {training.num_steps} steps are done in {workdir}"
    is_finished = resume and resume.step >= training.num_steps and not resume.evaluation_due
    if is_finished and processes.from_first(lambda: provenance.names_the_same(workdir, experiment)):
        progress.say(finished)
        return None
    if experiment.init_from and (resume is None or experiment.lora.rank):
        initial.check_initial(experiment)
    experiment = _with_tokenizer(experiment, workdir, progress)
    # First what is evaluated: it is only tokenized, while the rows leave a cache on disk.
    held_out = pipeline.open_held_out(
        experiment.data,
        vocab_size=model.vocab_size,
        context_length=experiment.eval.lengths(training.context_length)[0],
    )
    _check_held_out(held_out)
    # Before text is tokenized, which may take hours, a step that does not compile or fit shows.
    # Where its tokens are there already, what is wrong with them shows first.
    stage = stage_at(schedule, resume.step if resume else 0)
    compile_first = functools.partial(compile_step, experiment, mesh, stage, progress.say)
    if processes.count > 1:  # compilers of GPUs exchange what they measure: all of them at once
        compile_first()
    rows = processes.first_on_host(
        lambda: pipeline.open_rows(
            experiment.data,
            context_length=training.context_length,
            seed=training.seed,
            vocab_size=model.vocab_size,
            batch_size=training.batch_size,
            progress=progress.tokenizing,
            before_tokenizing=compile_first,
        )
    )
    _check_enough(rows, training)
    identity = _identity(held_out, rows)
    processes.check_same(identity)
    if resume:
        provenance.check_identity(experiment, resume.record, identity)
    if is_finished:
        progress.say(finished)
        return None
    now = provenance.describe(workdir, identity, sys.argv, flags)
    for warning in provenance.changed_machine(workdir, now) if resume else ():
        progress.say(f"warning: {warning}")
    devices = list(mesh.devices.flat)
    processes.meet()  # nothing is written where one of them is refused
    return Prepared(
        experiment=experiment,
        workdir=workdir,
        mesh=mesh,
        stages=schedule,
        program=program,
        rows=rows,
        held_out=held_out,
        identity=identity,
        resume=resume,
        provenance=now,
        peak_flops=peak_flops(training.peak_flops, model.dtype, devices),
    )


def compile_step(
    experiment: Experiment, mesh: Mesh, stage: Stage, say: Callable[[str], None]
) -> jax.stages.Compiled:
    """The compiled step of a stage; `say` gets a line on what it took, but where it was ready."""
    program, start = step.of_experiment(experiment, mesh, stage.model), time.perf_counter()
    if program.is_compiled:
        return program.compiled
    with jax.set_mesh(mesh), compiler.cache_watched() as cache:
        compiled = program.compiled
    say(f"compiling took {time.perf_counter() - start:.1f} s{cache()}")
    return compiled


def _decisive(experiment: Experiment) -> dict[str, Any]:
    """The keys in which processes must agree: not where a process and its files are."""
    flat = provenance.flattened(to_dict(experiment))
    own = ("distributed.", "compilation_cache.", "data.cache_dir")
    return {
        name: value
        for name, value in flat.items()
        if not (name.startswith(own) or provenance.is_compared_by_content(name))
    }


def _shared_resume(experiment: Experiment, workdir: AnyPath, progress: Progress) -> Resume | None:
    """`_find_resume` of process 0; the others take all but the rows."""
    processes, found = group.current(), None
    if processes.is_first:
        found = _find_resume(experiment, workdir, progress)
    told = processes.from_first(lambda: found and (found.step, found.record, found.evaluation_due))
    if processes.is_first or told is None:
        return found
    step, record, evaluation_due = told
    return Resume(step, record, [], evaluation_due)


def _find_resume(experiment: Experiment, workdir: AnyPath, progress: Progress) -> Resume | None:
    step = checkpoint.newest_sound(workdir)
    if step is None:
        _check_nothing_lost(workdir)
        return None
    for warning in provenance.check_resume(workdir, experiment):
        progress.say(f"warning: {warning}")
    record = checkpoint.read_record(workdir, step)
    rows = rows_until(workdir / METRICS, step, record.get("num_rows"))
    evaluated = any(row["step"] == step and "eval/loss" in row for row in rows)
    return Resume(step, record, rows, bool(record["evaluation_due"]) and not evaluated)


def _with_tokenizer(experiment: Experiment, workdir: AnyPath, progress: Progress) -> Experiment:
    """With the run's own copy of its tokenizer, where the original is gone."""
    named, own = experiment.data.tokenizer, workdir / TOKENIZER
    if named == "byte" or as_path(named).exists() or not own.is_dir():
        return experiment
    progress.say(f"data.tokenizer: {named} is gone; the run's own copy is used")
    return dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, tokenizer=str(own))
    )


def _check_nothing_lost(workdir: AnyPath) -> None:
    """Raises: ConfigError for rows that tell of a checkpoint although there is none.

    The second checkpoint begins when the first is whole. Fewer rows are those of a run that was
    stopped before it had one, which begins anew.
    """
    rows = read_rows(workdir / METRICS)
    every = (provenance.read_json(workdir / provenance.CONFIG) or {}).get("checkpoint", {})
    every = every.get("every_steps", 0)
    if rows and 0 < 2 * every < rows[-1]["step"]:
        problem = f"holds rows up to step {rows[-1]['step']} and no checkpoint"
        accepted = f"{checkpoint.FOLDER}/ back in its place, or another --workdir"
        raise ConfigError("--workdir", problem, str(workdir), accepted)


def _check_served(experiment: Experiment, workdir: AnyPath) -> None:
    """Raises: ConfigError for what needs a workdir on this machine."""
    if experiment.training.profile_start and isinstance(workdir, RemotePath):
        problem, got = "writes files that need a local --workdir", experiment.training.profile_start
        raise ConfigError("training.profile_start", problem, got, "0 with a workdir in gs://")


def _check_enough(rows: pipeline.Rows, training: TrainingConfig) -> None:
    """Raises: ConfigError where the sources of a mixture are used up before the last step."""
    if rows.end is None or rows.end >= training.num_steps * training.batch_size:
        return
    num_steps = rows.end // training.batch_size
    problem = "goes on when the sources of data.mixture were given as often as their epochs say"
    accepted = f"at most {num_steps}, or more epochs (0: without end)"
    raise ConfigError("training.num_steps", problem, training.num_steps, accepted)


def _identity(held_out: HeldOut, rows: pipeline.Rows) -> dict[str, Any]:
    """The fingerprints of what is evaluated and trained on, of a mixture's sources too."""
    of_text, of_rows = dict(held_out.identity), rows.identity
    if "by_source" in of_rows:
        each = of_rows["by_source"].items()
        of_rows |= {"by_source": {n: of_text["by_source"][n] | own for n, own in each}}
    return of_text | of_rows


def _check_held_out(documents: HeldOut) -> None:
    if isinstance(documents, Examples):
        return
    if isinstance(documents, MixedDocuments):
        for index, part in enumerate(documents.by_source.values()):
            with errors_of(index):
                _check_held_out(part)
        return
    context_only = documents.bos == "never"
    if not any(len(tokens) > context_only for tokens in documents.tokens):
        problem = "holds out no text to evaluate on"
        raise ConfigError("data.eval_fraction", problem, accepted="a larger part, or eval_paths")
