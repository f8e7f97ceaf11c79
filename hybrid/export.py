"""`python -m hybrid.export`: a run's model as a Hugging Face folder that transformers loads."""

import functools
import pathlib
import sys

from absl import flags

from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.loading import api
from hybrid.process import cli


def _define(values: flags.FlagValues) -> None:
    def text(name: str, doc: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, doc, flag_values=values)

    text("workdir", "folder of the run to export")
    text("checkpoint", "latest, best (by eval/loss) or a step", "latest")
    text("output", "the folder to write: new, or empty")


def _run(arguments: cli.Arguments) -> None:
    workdir, output = arguments.require("workdir"), pathlib.Path(arguments.require("output"))
    if arguments.overrides:
        raise ConfigError(next(iter(arguments.overrides)), "a trained model is exported as it is")
    if not output.absolute().parent.is_dir():
        raise ConfigError("--output", "its parent folder doesn't exist", str(output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError("--output", "must be new or an empty folder", str(output))
    model = api.load(workdir, arguments.flags.checkpoint)
    api.save_pretrained(model, output)
    print(f"written: {output}")


COMMAND = cli.Command(
    name="python -m hybrid.export",
    doc="Writes a run's model as a Hugging Face folder that transformers loads.",
    define=_define,
    config_class=Experiment,
    run=_run,
)

main = functools.partial(cli.main, COMMAND)

if __name__ == "__main__":
    sys.exit(main())
