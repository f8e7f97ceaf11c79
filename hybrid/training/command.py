"""The command behind `train.py` and `hybrid-train`: a config page in, a trained workdir out."""

import pathlib

from hybrid import experiment
from hybrid.experiment import Experiment
from hybrid.process import cli, distributed
from hybrid.process.files import as_path


def _run(arguments: cli.Arguments) -> None:
    page, workdir = arguments.require("config"), arguments.require("workdir")
    with distributed.started(experiment.load_distributed(page, arguments.overrides)):
        loaded = experiment.load(page, arguments.overrides)
        from hybrid.training import loop  # late: --help and wrong keys do without Orbax and Grain

        loop.run(loaded, as_path(workdir))


COMMAND = cli.Command(
    name="python train.py",
    doc="""
Trains a model and keeps everything in a workdir; the same command resumes a run that was stopped.
""",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "workdir": ("folder of the run, new or to resume; gs://BUCKET/FOLDER too", cli.AnyPath),
    },
    config_class=Experiment,
    run=_run,
)
