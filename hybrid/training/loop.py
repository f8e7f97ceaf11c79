"""The loop, the only place with a clock: next batch, step, the previous step's metrics, events.

The device never waits for the host: a step's metrics are fetched while the next one runs. Only
before an evaluation, a checkpoint or the end are those of the newest step fetched too. So the
order around a checkpoint of step N is

    fetch → append rows, fsync → evaluate → append its row, fsync → save → commit

and a run that is killed anywhere and started again ends with the rows and the bits of one that
wasn't: it goes on from the newest whole checkpoint, and the rows beyond it are cut.

Read first: `step.py` (what a step is), `events.py` (what may follow one), `prepare.py` (all checks
before anything is written).
"""

import contextlib
import functools
import io
import os
import time
from typing import Any

import jax

from hybrid import model
from hybrid.config import ConfigError
from hybrid.costs.training_flops import trained_share, training_flops
from hybrid.data.batch import Batch
from hybrid.data.placement import place_rows, place_whole, process_rows
from hybrid.evaluation import held_out
from hybrid.experiment import Experiment
from hybrid.loading.initial import check_base, fingerprint, read_initial
from hybrid.process import compiler, group, signals
from hybrid.process.files import as_path
from hybrid.process.lock import Lease, WriterLock, writer_lock
from hybrid.sharding import num_batch_parts
from hybrid.training.by_source import SourceTotals
from hybrid.training.events import Event, every, run_due
from hybrid.training.prepare import Prepared, compile_step, prepare
from hybrid.training.progress import Progress
from hybrid.training.window_schedule import Stage, stage_at
from hybrid.workdir import metrics as metrics_lib
from hybrid.workdir import provenance, tokenizer
from hybrid.workdir.checkpoint import Checkpoints, checkpoint_steps, restore_state


class NotFinite(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def run(
    experiment: Experiment, workdir: os.PathLike[str], progress: Progress | None = None
) -> None:
    """Trains until `training.num_steps`, from the newest checkpoint of `workdir` if it has one.

    `progress` writes what happens; by default to standard error.
    Raises:
      ConfigError: for what is wrong with config, data or workdir; nothing was changed then.
      Preempted, KeyboardInterrupt: after a signal (`signals.py`); a checkpoint was saved.
      NotFinite: after `training.max_bad_steps` non-finite steps in a row.
    """
    is_first = group.current().is_first
    progress = progress or Progress(None if is_first else io.StringIO())
    folder = as_path(workdir)
    locked = writer_lock(folder) if is_first else contextlib.nullcontext()
    kept = compiler.programs_kept(experiment.compilation_cache)
    with signals.caught() as interrupts, locked as lock, kept:
        prepared = prepare(experiment, folder, progress)
        if prepared is None:
            return
        with (
            jax.set_mesh(prepared.mesh),
            contextlib.closing(Run(prepared, progress, interrupts, lock)) as started,
        ):
            started.train()


def _claim(lock: WriterLock | Lease | None, prepared: Prepared) -> None:
    """Makes this the one writer of the workdir.  Raises: ConfigError where another has been.

    lock: None on all processes but the first.
    """
    if lock is None or lock.claim():
        return
    newest = checkpoint_steps(prepared.workdir)[-1:]
    if newest != ([prepared.resume.step] if prepared.resume else []):
        problem = "was written to by another run in the meantime"
        raise ConfigError("--workdir", problem, str(prepared.workdir), "start again to go on")


class Run:
    """The state of a run and its files; `train` is the loop."""

    def __init__(
        self,
        prepared: Prepared,
        progress: Progress,
        interrupts: signals.Interrupts,
        lock: WriterLock | Lease | None,
    ):
        self.processes = group.current()
        self.prepared, self.progress, self.interrupts = prepared, progress, interrupts
        self.lock = lock
        self.training, resume = prepared.experiment.training, prepared.resume
        self.num_steps = self.training.num_steps
        self.step = self.saved_step = resume.step if resume else 0
        self.tokens_seen = resume.record["tokens_seen"] if resume else 0
        names = [source.name for source in prepared.experiment.data.mixture]
        self.by_source = SourceTotals(names, resume.record if resume else {})
        self.evaluation_due = bool(resume and resume.evaluation_due)
        self.pending_metrics: tuple[int, dict[str, jax.Array]] | None = None
        self.tracing = False
        self._describe()
        self.state = self._first_state()
        self._compile(stage_at(prepared.stages, self.step))
        _claim(lock, prepared)  # before it nothing is written
        self.processes.meet()
        self._open_files()
        self.own_rows = process_rows(prepared.mesh, self.training.batch_size)
        first_row = self.step * self.training.batch_size
        self.batches = prepared.rows.batches(first_row, self.training.batch_size, self.own_rows)
        self.events = self._events()
        self.clock = time.perf_counter()

    # --- The loop ----------------------------------------------------------------------------

    def train(self) -> None:
        """One step after the other until the last, or until a signal."""
        self.processes.meet()  # until here a signal ends all of them at once
        with self.interrupts.deferred():
            self._catch_up()
            while self.step < self.num_steps:
                self._enter_stage()
                batch = self.place(next(self.batches))
                with jax.transfer_guard("disallow"):
                    self.state, metrics = self.compiled(self.state, batch)
                self.step += 1
                self.flush_metrics((self.step, metrics))
                if run_due(self.events, self.step):
                    self.clock = time.perf_counter()
            self.checkpoints.finish()
            self.progress.say(f"finished: {self.num_steps} steps in {self.prepared.workdir}")

    def _events(self) -> tuple[Event, ...]:
        experiment, last = self.prepared.experiment, self.num_steps
        first_traced = self.training.profile_start
        last_traced = min(first_traced + self.training.profile_steps - 1, last)
        return (
            Event(lambda step: step == first_traced - 1, self.start_trace),
            Event(lambda step: step == last_traced, self.stop_trace),
            Event(every(experiment.eval.every_steps, last), self.evaluate),
            Event(every(experiment.checkpoint.every_steps, last), self.save),
            Event(lambda step: self.is_stopped(), self.stop),
        )

    def _catch_up(self) -> None:
        """What a resumed checkpoint still owes, and what is due before the first step."""
        if self.evaluation_due:
            self.evaluate(self.step)
        if self.is_stopped():
            self.stop(self.step)
        if self.training.profile_start == self.step + 1:
            self.start_trace(self.step)
        self.clock = time.perf_counter()

    def _enter_stage(self) -> None:
        """Goes on with the step of another window where the schedule has one begin here."""
        stage = stage_at(self.prepared.stages, self.step)
        if stage == self.stage:
            return
        self.flush_metrics()
        if not self.training.window_choices:
            window = stage.model.window_size
            self.progress.say(f"step {self.step}: the window is {window} from here")
        self._compile(stage)
        self.clock = time.perf_counter()

    def _compile(self, stage: Stage) -> None:
        """Compiles the step of a stage; a run of the same shape in this process has it ready."""
        experiment = self.prepared.experiment
        self.stage = stage
        self.compiled = compile_step(experiment, self.prepared.mesh, stage, self.progress.say)
        share = trained_share(stage.model, experiment.lora, experiment.optimizer.freeze)
        step = self.training.step
        self.flops_per_step = training_flops([(0, stage.model)], step, share, num_steps=1)

    def place(self, batch: Batch) -> Batch:
        """A host batch (this process's rows) as global arrays, rows over the devices."""
        return place_rows(batch, self.prepared.mesh, self.training.batch_size, self.own_rows)

    def is_stopped(self) -> bool:
        """Whether a signal on any process ends the run here, asked before each unit of work."""
        return self.processes.is_last(self.interrupts)

    # --- Metrics -----------------------------------------------------------------------------

    def flush_metrics(self, newest: tuple[int, dict[str, jax.Array]] | None = None) -> None:
        """Fetches and writes the metrics kept back; `newest` (step, metrics) are kept in turn."""
        pending, self.pending_metrics = self.pending_metrics, newest
        if pending is None:
            return
        step, values = pending[0], jax.device_get(pending[1])
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.tokens_seen += int(values["num_tokens"])
        peak = self.prepared.peak_flops
        mfu = self.flops_per_step / seconds / peak if peak else None
        row = metrics_lib.training_row(step, values, self.tokens_seen, seconds, mfu)
        row |= self.by_source.add(values.get("by_source"))
        if step % self.training.log_every == 0 or step == self.num_steps:
            self.write(row)
        self.progress.step(now, self.num_steps, row, (self.num_steps - step) * seconds)
        if int(values["bad_in_a_row"]) >= self.training.max_bad_steps:
            saved = f"checkpoint {self.saved_step} is the last good one"
            raise NotFinite(
                f"step {step}: loss or gradient was not finite for {self.training.max_bad_steps} "
                "steps in a row, none of which was applied; "
                + (saved if self.saved_step else "there is no checkpoint yet")
            )

    def write(self, row: metrics_lib.Row) -> None:
        """Appends a row to metrics.jsonl and TensorBoard, on process 0."""
        if self.metrics:
            self.metrics.append([row])
        if self.tensorboard:
            self.tensorboard.add(row)

    def sync(self) -> None:
        """Returns when all rows of finished steps are on the disk."""
        self.flush_metrics()
        if self.lock:
            self.lock.confirm()
        if self.metrics:
            self.metrics.sync()

    # --- Events ------------------------------------------------------------------------------

    def start_trace(self, step: int) -> None:
        """Begins a jax.profiler trace with the step after `step`."""
        self.flush_metrics()
        if self.processes.is_first:
            jax.profiler.start_trace(str(self.prepared.workdir / "profile"))
            self.tracing = True

    def stop_trace(self, step: int) -> None:
        """Ends the trace after `step`."""
        if self.tracing:
            self.flush_metrics()
            jax.profiler.stop_trace()
            self.tracing = False

    def evaluate(self, step: int) -> None:
        """Evaluates step `step` and writes its row; a signal leaves the evaluation due."""
        self.sync()
        experiment = self.prepared.experiment
        result = held_out.evaluate(
            experiment.model,
            self.state.params,
            self.prepared.held_out,
            experiment.eval.first_length_only(),
            context_length=self.training.context_length,
            place=functools.partial(place_whole, mesh=self.prepared.mesh),
            batch_multiple=num_batch_parts(self.prepared.mesh),
            inference=experiment.inference,
            flags=self.prepared.program.flags,
            should_stop=self.is_stopped,
        )
        self.evaluation_due = result is None
        if result is None:
            return
        self.write(metrics_lib.evaluation_row(step, result))
        self.sync()
        self.progress.say(f"step {step}: eval/loss {result.loss:.4f}")

    def save(self, step: int) -> None:
        """Begins the checkpoint of `step`, with all rows up to it on disk."""
        self.sync()
        if self.saved_step == step:
            return
        plan = model.layer_plan(self.prepared.experiment.model)
        record = {
            "first_row": step * self.training.batch_size,
            **self.prepared.identity,
            "evaluation": self._evaluated_as(),
            "num_rows": self.metrics.count() if self.metrics else None,
            "seed": self.training.seed,
            "tokens_seen": self.tokens_seen,
            "tokens_seen_by_source": self.by_source.tokens_seen,
            "evaluation_due": self.evaluation_due,
            "base": self.base,
            "segments": [[segment.letters, segment.repetitions] for segment in plan.segments],
        }
        self.checkpoints.save(step, self.state, record)
        self.saved_step = step

    def _evaluated_as(self) -> list[Any]:
        """What evaluations have to share to be compared: their text and what counts of it."""
        text = self.prepared.identity.get("held_out_fingerprint")
        return [text, *self.prepared.experiment.eval.counted()]

    def stop(self, step: int) -> None:
        """Saves `step` if it isn't and raises what ends the command."""
        if step == 0:
            raise self.interrupts.stop("before the first step, nothing to save")
        self.save(step)
        self.checkpoints.finish()
        raise self.interrupts.stop(f"step {step} is saved in {self.prepared.workdir}")

    # --- Beginning and end -------------------------------------------------------------------

    def _describe(self) -> None:
        prepared, rows, say = self.prepared, self.prepared.rows, self.progress.say
        num_params = sum(leaf.size for leaf in jax.tree.leaves(prepared.program.state.params))
        letters = model.layer_plan(prepared.experiment.model).letters
        kind, threads = (prepared.provenance[name] for name in ("device_kind", "thread_count"))
        say(f"data: {rows.description}; rows {rows.fingerprint}")
        say(f"model: {num_params:,} parameters, layers {letters}")
        say(f"devices: {prepared.mesh.devices.size} × {kind}, {threads} threads")
        if prepared.program.flags:
            say(f"XLA flags: {' '.join(prepared.program.flags)}")

    def _first_state(self) -> Any:
        """The state that the run begins or goes on with; sets `base`, its base's fingerprint."""
        resume, program = self.prepared.resume, self.prepared.program
        base = self._read_base()
        if resume is None:
            key = jax.random.key(self.training.seed)
            return program.init(key) if base is None else program.start(base, key)
        self.progress.say(f"resuming after step {resume.step}")
        return restore_state(self.prepared.workdir, resume.step, program.state, base)

    def _read_base(self) -> Any:
        """The parameters of init_from, where they are needed; they must not have changed."""
        experiment, resume = self.prepared.experiment, self.prepared.resume
        has_adapters = experiment.lora.rank > 0
        self.base = None
        if not experiment.init_from or (resume and not has_adapters):
            return None
        params = read_initial(experiment, self.prepared.mesh, self.progress.say)
        if has_adapters:
            self.base = fingerprint(params)
            if resume:
                check_base(experiment, resume.record, params, self.base)
        return params

    def _open_files(self) -> None:
        """Creates or cleans up the workdir: the first thing that a start writes.

        Checkpoints are written by all processes, the rest by the first one.
        """
        experiment, workdir = self.prepared.experiment, self.prepared.workdir
        self.checkpoints = Checkpoints(workdir, experiment.checkpoint)
        self.metrics: metrics_lib.MetricsFile | None = None
        self.tensorboard: metrics_lib.TensorBoard | None = None
        if not self.processes.is_first:
            return
        tokenizer.keep(experiment.data.tokenizer, workdir)
        provenance.write(workdir, experiment, self.prepared.provenance)
        self.metrics = metrics_lib.MetricsFile(workdir / metrics_lib.METRICS)
        self.metrics.cut(self.prepared.resume.rows if self.prepared.resume else [])
        if self.training.tensorboard:
            self.tensorboard = metrics_lib.TensorBoard(workdir / "tensorboard", self.step + 1)

    def close(self) -> None:
        """Ends threads and closes files; a save under way is finished."""
        if self.tracing:
            jax.profiler.stop_trace()
        self.batches.close()
        self.checkpoints.close()
        if self.tensorboard:
            self.tensorboard.close()
