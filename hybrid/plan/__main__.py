"""`python -m hybrid.plan --config=...`: what a config costs, before anything runs."""

import json
import pathlib
import sys

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.plan import report
from hybrid.plan.table import render
from hybrid.process import cli


def _run(arguments: cli.Arguments) -> None:
    for name in ("topology", "search"):
        if arguments.flags[name].value:
            raise ConfigError(f"--{name}", "is not built yet", arguments.flags[name].value)
    page = arguments.require("config")
    loaded = experiment.load(page, arguments.overrides)
    result = report(loaded, arguments.flags.context, arguments.flags.batch)
    if arguments.flags.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(render(result, loaded, page))


COMMAND = cli.Command(
    name="python -m hybrid.plan",
    doc="Prints what a config costs: parameters, FLOPs a token, KV-cache bytes, attention paths.",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "context": ("tokens a row; default: training.context_length", int),
        "batch": ("rows, which multiply the cache bytes", 1),
        "topology": ("compile for devices such as v5p:4x4x4 (not built yet)", str),
        "search": ("search for the best mesh (not built yet)", False),
        "json": ("print the figures as JSON instead of a table", False),
    },
    config_class=Experiment,
    run=_run,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.main(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
