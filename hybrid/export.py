"""`python -m hybrid.export`: a run's model as a Hugging Face folder that transformers loads."""

import functools
import pathlib
import sys

from hybrid.config import ConfigError, errors_under
from hybrid.experiment import Experiment
from hybrid.loading import api
from hybrid.model.config import DTYPES
from hybrid.process import cli, distributed
from hybrid.process.files import check_free


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("export", arguments.overrides)
    workdir, output = arguments.require("workdir"), pathlib.Path(arguments.require("output"))
    if arguments.overrides:
        raise ConfigError(next(iter(arguments.overrides)), "a trained model is exported as it is")
    if not output.absolute().parent.is_dir():
        raise ConfigError("--output", "its parent folder doesn't exist", str(output))
    check_free(output, "--output")
    dtype = arguments.flags.dtype
    with errors_under("--"):
        api.check_dtype(dtype)  # before the model is read
    with cli.errors_by_flag({"workdir": "--workdir"}):
        model = api.load(workdir, arguments.flags.checkpoint)
    api.save_pretrained(model, output, dtype or api.base_dtype(model))
    print(f"written: {output}")


COMMAND = cli.Command(
    name="python -m hybrid.export",
    doc="Writes a run's model as a Hugging Face folder that transformers loads.",
    flags={
        "workdir": ("folder of the run to export", cli.AnyPath),
        "checkpoint": ("latest, best (by eval/loss) or a step", "latest"),
        "output": ("the folder to write: new, or empty", pathlib.Path),
        "dtype": (
            f"of the tensors, {', '.join(DTYPES)}; empty: that of the Hugging Face folder that the "
            "run was started from, else of the run's parameters",
            "",
        ),
    },
    config_class=Experiment,
    run=_run,
)

main = functools.partial(cli.main, COMMAND)

if __name__ == "__main__":
    sys.exit(main())
