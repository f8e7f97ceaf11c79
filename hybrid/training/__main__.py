"""`python train.py` and `hybrid-train`: flags and config in, a trained workdir out."""

import sys
from collections.abc import Sequence

from hybrid.process import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    # Signals are caught before jax is loaded, which takes seconds.
    with signals.caught() as interrupts:
        try:
            from hybrid.experiment import Experiment
            from hybrid.process import cli
        except (signals.Preempted, KeyboardInterrupt) as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            return 128 + (interrupts.requested or signals.WATCHED[1])
        command = cli.Command("python train.py", DOC, _define, Experiment, _run)
        return cli.main(command, argv)


DOC = """
Trains a model and keeps everything in a workdir; the same command resumes a run that was stopped.
"""


def _define(values) -> None:
    from absl import flags

    page = "config page, PATH.py or PATH.py:ARG"
    flags.DEFINE_string("config", None, page, flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run, new or to resume", flag_values=values)


def _run(arguments) -> None:
    import pathlib

    from hybrid import experiment

    page, workdir = arguments.require("config"), arguments.require("workdir")
    loaded = experiment.load(page, arguments.overrides)
    from hybrid.training import loop

    loop.run(loaded, pathlib.Path(workdir))


if __name__ == "__main__":
    sys.exit(main())
