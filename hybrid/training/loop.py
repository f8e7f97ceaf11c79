"""The loop, the only place with a clock: next batch, step, the previous step's metrics, events.

The device never waits for the host: a step's metrics are fetched while the next one runs. Only
before an evaluation, a checkpoint or the end are those of the newest step fetched too. So the
order around a checkpoint of step N is

    fetch → append rows, fsync → evaluate → append its row, fsync → save → commit

and a run that is killed anywhere and started again ends with the rows and the bits of one that
wasn't: it goes on from the newest whole checkpoint, and the rows beyond it are cut.

Read first: `step.py` (what a step is), `events.py` (what may follow one). `prepare.py` holds all
that is checked before anything is written.
"""

import contextlib
import pathlib
import time
from typing import Any

import jax

from hybrid import model
from hybrid.costs import model_costs as cost
from hybrid.data.batch import Batch
from hybrid.evaluation import held_out
from hybrid.experiment import Experiment
from hybrid.loading.initial import check_base, fingerprint, read_initial
from hybrid.process import signals
from hybrid.sharding import batch_sharding, num_batch_parts
from hybrid.training.events import Event, at, every, run_due
from hybrid.training.prepare import Prepared, prepare
from hybrid.training.progress import Progress
from hybrid.training.step import build
from hybrid.training.window_schedule import Stage, stage_at, stages
from hybrid.workdir import metrics as metrics_lib
from hybrid.workdir import provenance
from hybrid.workdir.checkpoint import Checkpoints, restore_state


class NotFinite(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def run(experiment: Experiment, workdir: pathlib.Path, progress: Progress | None = None) -> None:
    """Trains until `training.num_steps`, from the newest checkpoint of `workdir` if it has one.

    `progress` hears of it; by default standard error does.
    Raises:
      ConfigError: for what is wrong with config, data or workdir; nothing was changed then.
      Preempted, KeyboardInterrupt: after SIGTERM and SIGINT; a checkpoint was saved.
      NotFinite: after `training.max_bad_steps` non-finite steps in a row.
    """
    progress = progress or Progress()
    with signals.caught() as interrupts:
        prepared = prepare(experiment, pathlib.Path(workdir), progress)
        if prepared is None:
            return
        with (
            jax.set_mesh(prepared.mesh),
            contextlib.closing(Run(prepared, progress, interrupts)) as this,
        ):
            this.train()


class Run:
    """The state of a run and its files; `train` is the loop."""

    def __init__(self, prepared: Prepared, progress: Progress, interrupts: signals.Interrupts):
        self.prepared, self.progress, self.interrupts = prepared, progress, interrupts
        self.training = prepared.experiment.training
        self.num_steps = self.training.num_steps
        self.step = prepared.resume.step if prepared.resume else 0
        self.tokens_seen = prepared.resume.record["tokens_seen"] if prepared.resume else 0
        self.evaluation_due = bool(prepared.resume and prepared.resume.evaluation_due)
        self.saved_step = self.step
        self.base: str | None = None
        self.waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.tracing = False
        self._introduce()
        self.state = self._first_state()
        self.stages = stages(prepared.experiment.model, self.num_steps)
        self._begin(stage_at(self.stages, self.step))
        self._open_files()
        self.batches = prepared.rows.batches(
            self.step * self.training.batch_size,
            self.training.batch_size,
            jax.process_index(),
            jax.process_count(),
        )
        self.events = self._events()
        self.clock = time.perf_counter()

    # --- The loop ----------------------------------------------------------------------------

    def train(self) -> None:
        """One step after the other until the last, or until a signal."""
        with self.interrupts.deferred():
            self._catch_up()
            while self.step < self.num_steps:
                self._enter_stage()
                batch = self.put(next(self.batches))
                with jax.transfer_guard("disallow"):
                    self.state, metrics = self.compiled(self.state, batch)
                self.step += 1
                self.hand_over((self.step, metrics))
                if run_due(self.events, self.step):
                    self.clock = time.perf_counter()
            self.checkpoints.finish()
            self.progress.say(f"finished: {self.num_steps} steps in {self.prepared.workdir}")

    def _events(self) -> tuple[Event, ...]:
        experiment, last = self.prepared.experiment, self.num_steps
        first_traced = self.training.profile_start
        traced = min(first_traced + self.training.profile_steps - 1, last)
        return (
            Event(at(first_traced - 1), self.start_trace),
            Event(at(traced), self.stop_trace),
            Event(every(experiment.eval.every_steps, last), self.evaluate),
            Event(every(experiment.checkpoint.every_steps, last), self.save),
            Event(lambda step: bool(self.interrupts), self.stop),
        )

    def _catch_up(self) -> None:
        """What a resumed checkpoint still owes, and what is due before the first step."""
        if self.evaluation_due:
            self.evaluate(self.step)
        if self.interrupts:
            self.stop(self.step)
        if self.training.profile_start == self.step + 1:
            self.start_trace(self.step)
        self.clock = time.perf_counter()

    def _enter_stage(self) -> None:
        """Compiles the step of another window where the schedule has one begin here."""
        stage = stage_at(self.stages, self.step)
        if stage == self.stage:
            return
        self.hand_over(None)
        self.progress.say(f"step {self.step}: the window is {stage.model.window_size} from here")
        self._begin(stage)
        self.clock = time.perf_counter()

    def put(self, batch: Batch) -> Batch:
        """A host batch (this process's rows) as global arrays, rows over the devices."""
        where = batch_sharding(self.prepared.mesh)
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(where, rows), batch)

    # --- Metrics -----------------------------------------------------------------------------

    def hand_over(self, newest: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Fetches and writes the metrics that waited; `newest` waits instead."""
        waiting, self.waiting = self.waiting, newest
        if waiting is None:
            return
        step, values = waiting[0], jax.device_get(waiting[1])
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.tokens_seen += int(values["num_tokens"])
        mfu = self.flops_per_step / seconds / self.peak if self.peak else None
        row = metrics_lib.training_row(step, values, self.tokens_seen, seconds, mfu)
        if step % self.training.log_every == 0 or step == self.num_steps:
            self.write(row)
        self.progress.step(now, self.num_steps, row, (self.num_steps - step) * seconds)
        if int(values["bad_in_a_row"]) >= self.training.max_bad_steps:
            self._give_up(step)

    def write(self, row: metrics_lib.Row) -> None:
        """Appends a row to metrics.jsonl and TensorBoard."""
        self.metrics.append([row])
        if self.tensorboard:
            self.tensorboard.add(row)

    def _give_up(self, step: int) -> None:
        kept = (
            f"checkpoint {self.saved_step} is the last good one"
            if self.saved_step
            else ("there is no checkpoint yet")
        )
        raise NotFinite(
            f"step {step}: loss or gradient was not finite for {self.training.max_bad_steps} "
            f"steps in a row, none of which was applied; {kept}"
        )

    # --- Events ------------------------------------------------------------------------------

    def start_trace(self, step: int) -> None:
        """Begins a jax.profiler trace with the step after `step`."""
        self.hand_over(None)
        jax.profiler.start_trace(str(self.prepared.workdir / "profile"))
        self.tracing = True

    def stop_trace(self, step: int) -> None:
        """Ends the trace after `step`."""
        if self.tracing:
            self.hand_over(None)
            jax.profiler.stop_trace()
            self.tracing = False

    def evaluate(self, step: int) -> None:
        """Evaluates step `step` and writes its row; remembers it as due if a signal came."""
        self.hand_over(None)
        self.metrics.sync()
        experiment = self.prepared.experiment
        result = held_out.evaluate(
            experiment.model,
            self.state.params,
            self.prepared.held_out,
            experiment.eval.first_length_only(),
            context_length=self.training.context_length,
            put=self.put,
            batch_multiple=num_batch_parts(self.prepared.mesh),
            inference=experiment.inference,
            should_stop=lambda: bool(self.interrupts),
        )
        self.evaluation_due = result is None
        if result is None:
            return
        row = metrics_lib.evaluation_row(step, result)
        self.write(row)
        self.metrics.sync()
        self.progress.say(f"step {step}: eval/loss {result.loss:.4f}")

    def save(self, step: int) -> None:
        """Begins the checkpoint of `step`, with all rows up to it on disk."""
        self.hand_over(None)
        self.metrics.sync()
        if self.saved_step == step:
            return
        plan = model.layer_plan(self.prepared.experiment.model)
        record = {
            "first_row": step * self.training.batch_size,
            "data_fingerprint": self.prepared.rows.fingerprint,
            "seed": self.training.seed,
            "tokens_seen": self.tokens_seen,
            "evaluation_due": self.evaluation_due,
            "base": self.base,
            "segments": [[segment.letters, segment.repetitions] for segment in plan.segments],
        }
        self.checkpoints.save(step, self.state, record)
        self.saved_step = step

    def stop(self, step: int) -> None:
        """Saves `step` if it isn't and raises what ends the command."""
        if step == 0:
            raise self.interrupts.stop("before the first step, nothing to save")
        self.save(step)
        self.checkpoints.finish()
        raise self.interrupts.stop(f"step {step} is saved in {self.prepared.workdir}")

    # --- Beginning and end -------------------------------------------------------------------

    def _introduce(self) -> None:
        devices = self.prepared.mesh.devices
        rows, now = self.prepared.rows, self.prepared.provenance
        state = self.prepared.program.state
        num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        letters = model.layer_plan(self.prepared.experiment.model).letters
        self.progress.say(f"data: {rows.description}; rows {rows.fingerprint}")
        self.progress.say(f"model: {num_params:,} parameters, layers {letters}")
        self.progress.say(
            f"devices: {devices.size} × {now['device_kind']}, {now['thread_count']} threads"
        )

    def _first_state(self) -> Any:
        prepared, base = self.prepared, self._read_base()
        resume, program = prepared.resume, prepared.program
        if resume is None:
            key = jax.random.key(self.training.seed)
            return program.init(key) if base is None else program.start(base, key)
        self.progress.say(f"resuming after step {resume.step}")
        return restore_state(prepared.workdir, resume.step, program.state, base)

    def _read_base(self) -> Any:
        """The parameters of init_from, where they are needed; they must not have changed."""
        experiment, resume = self.prepared.experiment, self.prepared.resume
        has_adapters = experiment.lora.rank > 0
        if not experiment.init_from or (resume and not has_adapters):
            return None
        base = read_initial(experiment, self.prepared.mesh, self.progress.say)
        self.base = fingerprint(base) if has_adapters else None
        if resume and self.base is not None:
            check_base(experiment, resume.record, self.base)
        return base

    def _begin(self, stage: Stage) -> None:
        """Compiles the step of a stage; a run of the same shape in this process has it ready."""
        start, experiment, training = time.perf_counter(), self.prepared.experiment, self.training
        mesh, adapters = self.prepared.mesh, experiment.lora
        program = build(stage.model, training, experiment.optimizer, mesh, adapters)
        self.stage, self.compiled = stage, program.compiled
        tokens = training.batch_size * training.context_length
        per_token = cost.forward_flops_per_token(stage.model, training.context_length)
        # The backward costs a forward for the stream, and one for the kernels that are trained.
        self.flops_per_step = (2 + program.trained_share) * per_token * tokens
        self.progress.say(f"compiling took {time.perf_counter() - start:.1f} s")

    def _open_files(self) -> None:
        """Creates or cleans up the workdir: the first thing that a start writes."""
        experiment, workdir = self.prepared.experiment, self.prepared.workdir
        self.peak = self.prepared.peak_flops
        self.checkpoints = Checkpoints(workdir, experiment.checkpoint)
        provenance.write(workdir, experiment, self.prepared.provenance)
        self.metrics = metrics_lib.MetricsFile(workdir / metrics_lib.METRICS)
        self.metrics.cut(self.step)
        self.tensorboard = None
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
