"""Benchmarks of retrieval that every run of a sweep is asked, through what `eval.py` runs.

    RUN/evaluations/NAME.json            the result, as eval.py's --output
    RUN/evaluations/NAME.samples.jsonl   the samples with their replies, added as they come

What a benchmark needs is checked for every cell before anything trains. One whose result is there
is never asked again; one that was stopped goes on by sample.

Read first: `cells.py`. Read next: `sweep.py`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid import origin
from hybrid.ablate.config import Overrides, SweepConfig
from hybrid.ablate.run.cells import SweepRun, folder_names
from hybrid.config import ConfigError
from hybrid.evaluation.retrieval import sample_log
from hybrid.evaluation.retrieval.benchmark import Benchmark, benchmark
from hybrid.evaluation.target import Target
from hybrid.experiment import Experiment
from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath

if TYPE_CHECKING:
    from hybrid.evaluation.retrieval.result import RetrievalResult

FOLDER = "evaluations"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A named benchmark.

    Attributes:
      overrides: of `eval.*` by dotted key.
      file: of its result, relative to a run's folder.
    """

    name: str
    overrides: Overrides
    file: str

    def of(self, config: Experiment) -> Experiment:
        """A run's config with the benchmark's keys.  Raises: ConfigError for what doesn't fit."""
        values = config_lib.updated(config_lib.to_dict(config), self.overrides)
        built = experiment_lib.from_config(values)
        if not built.eval.retrieval.tasks:
            raise ConfigError("eval.retrieval.tasks", "names no task", (), "one at least")
        built.eval.check_one_measure()
        return built

    def result(self, folder: pathlib.Path) -> pathlib.Path:
        """The file of its result for the run in `folder`."""
        return folder / self.file

    def samples(self, folder: pathlib.Path) -> AnyPath:
        """The file of its samples for the run in `folder`."""
        return sample_log.path_beside(self.result(folder))


def evaluations(config: SweepConfig) -> tuple[Evaluation, ...]:
    """Those of a sweep, in order."""
    files = folder_names([name for name, _ in config.evaluations])
    return tuple(
        Evaluation(name, overrides, f"{FOLDER}/{files[name]}.json")
        for name, overrides in config.evaluations
    )


def benchmarks(config: SweepConfig, runs: Sequence[SweepRun]) -> Mapping[str, list[Benchmark]]:
    """{name of an evaluation: what it asks of each run}; of each task a prompt is made.

    Raises: ConfigError for a benchmark that does not fit a cell.
    """
    made: dict[tuple, Benchmark] = {}

    def of(evaluation: Evaluation, run: SweepRun) -> Benchmark:
        asked = evaluation.of(run.experiment)
        base = _base(config, run)
        model = asked.model
        sizes = model.vocab_size, model.learned_positions
        use = asked.data, asked.eval.retrieval, sizes, str(base)
        if use not in made:
            made[use] = benchmark(asked, base)
        return made[use]

    found: dict[str, list[Benchmark]] = {each.name: [] for each in evaluations(config)}
    for evaluation in evaluations(config):
        for run in runs:
            try:
                found[evaluation.name].append(of(evaluation, run))
            except ConfigError as error:
                cell = " ".join(filter(None, (run.cell.arm, run.cell.name)))
                problem = f"{evaluation.name} does not fit cell {cell}: {error.key} {error.problem}"
                raise ConfigError("evaluations", problem, error.got, error.accepted) from None
    return found


def _base(config: SweepConfig, run: SweepRun) -> AnyPath | None:
    """The Hugging Face folder that a run's parameters begin as."""
    start = config.trained or run.experiment.init_from
    return origin.base_folder(origin.find(start)) if start else None


def ask(
    evaluation: Evaluation,
    target: Target,
    folder: pathlib.Path,
    model: str,
    progress: Callable[[int, int], None],
) -> "RetrievalResult":
    """Asks a target what is left to ask, and writes the result into a run's folder.

    Args:
      target: with the run's own config.
      model: names the model wherever the sweep's folder lies.
      progress: called with tokens of prompts done and in all.
    """
    from hybrid.evaluation.retrieval import command  # loads scipy, which a check does without

    target = dataclasses.replace(
        target, experiment=evaluation.of(target.experiment), overrides=evaluation.overrides
    )
    asked = benchmark(target.experiment, origin.base_folder(target.origin))
    (folder / FOLDER).mkdir(exist_ok=True)
    identity = command.identity(target, asked, model)
    log = sample_log.SampleLog(evaluation.samples(folder), identity)
    found = command.measure(target, asked, log, progress)
    write_json(evaluation.result(folder), found.to_dict(), indent=1, allow_nan=False)
    return found
