"""`python -m hybrid.plan --config=...`: what a config costs, before anything runs."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.plan import budget, budget_table, report, with_context
from hybrid.plan import topology as topologies
from hybrid.plan.table import render
from hybrid.process import cli


def _run(arguments: cli.Arguments) -> None:
    flags = arguments.flags
    if flags.search:
        raise ConfigError("--search", "is not built yet", flags.search)
    page = arguments.require("config")
    loaded = experiment.load(page, arguments.overrides)
    result = report(loaded, flags.context, flags.batch)
    if flags.topology:
        topology = topologies.parse(flags.topology)
        loaded = with_context(loaded, flags.context)
        with _progress_line(flags.topology) as progress:
            found = budget.budget(loaded, topology, progress)
        result = dataclasses.replace(result, budget=found)
    if flags.json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(render(result, loaded, page))
    if result.budget:
        print(f"\n{budget_table.render(result.budget, topology)}")


@contextlib.contextmanager
def _progress_line(name: str) -> Iterator[Callable[[float], None]]:
    """Tells on standard error how long the compiler has been running: one line that grows."""
    end = ""

    def progress(seconds: float) -> None:
        nonlocal end
        if not end:
            print(f"compiling the train step for {name}: 0 s", end="", file=sys.stderr)
            end = "\n"
        elif round(seconds) % 15 == 0:
            print(f" {round(seconds)}", end="", flush=True, file=sys.stderr)

    try:
        yield progress
    finally:
        print(end=end, file=sys.stderr)


COMMAND = cli.Command(
    name="python -m hybrid.plan",
    doc="Prints what a config costs: parameters, FLOPs a token, KV-cache bytes, attention paths.",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "context": ("tokens a row; default: training.context_length", int),
        "batch": ("rows, which multiply the cache bytes", 1),
        "topology": ("compile the train step for TPUs such as v5p:4x4x4, which takes minutes", str),
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
