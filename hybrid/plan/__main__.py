"""`python -m hybrid.plan --config=...`: what a config costs, before anything runs."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.plan import (
    attention_table,
    budget,
    budget_table,
    compiled,
    grid,
    report,
    search,
    with_context,
)
from hybrid.plan import topology as topologies
from hybrid.plan.table import render
from hybrid.plan.topology import Topology
from hybrid.process import cli

TABLE_TOPOLOGY = "v5p:4x4x4"  # of --table without --topology


def _run(arguments: cli.Arguments) -> None:
    flags = arguments.flags
    page = arguments.require("config")
    name = flags.topology or (TABLE_TOPOLOGY if flags.table else "")
    if flags.attention or flags.search:
        name = arguments.require("topology")
    topology = topologies.parse(name) if name else None
    with topologies.in_use(topology):
        loaded = experiment.load(page, arguments.overrides)
        if topology is None:
            _print_plan(loaded, page, flags, None)
            return
        loaded = with_context(loaded, flags.context)
        if flags.attention:
            _print_attention(loaded, topology, flags)
        elif flags.search:
            _print_search(loaded, topology, flags)
        elif flags.table:
            _print_grid(loaded, topology, flags)
        else:
            _print_plan(loaded, page, flags, topology)


def _print_plan(loaded: Experiment, page: str, flags: Any, topology: Topology | None) -> None:
    if topology:
        compiled.check_mesh(loaded, topology)  # before jax starts, which libtpu comments at length
    result = report(loaded, flags.context, flags.batch)
    if topology:
        with _progress_line(topology.name) as progress:
            result = dataclasses.replace(result, budget=budget.budget(loaded, topology, progress))
    if flags.json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(render(result, loaded, page))
    if topology:
        print(f"\n{budget_table.render(result.budget, topology)}")


def _print_grid(loaded: Experiment, topology: Topology, flags: Any) -> None:
    cells = grid.grid(loaded, topology)
    values = [cell.to_dict() for cell in cells]
    print(json.dumps(values, indent=2) if flags.json else grid.render(cells, topology))


def _print_attention(loaded: Experiment, topology: Topology, flags: Any) -> None:
    found = attention_table.rows(loaded)
    values = [row.to_dict() for row in found]
    print(json.dumps(values, indent=2) if flags.json else attention_table.render(found, topology))


def _print_search(loaded: Experiment, topology: Topology, flags: Any) -> None:
    if flags.compile < 0:
        raise ConfigError("--compile", "must be at least 0", flags.compile)
    with _progress_line(topology.name) as progress:
        found = search.search(loaded, topology, flags.compile, progress)
    values = [candidate.to_dict() for candidate in found]
    print(json.dumps(values, indent=2) if flags.json else search.render(found, topology))


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
        "search": ("rank meshes, remat and micro-batches for --topology; compile the best", False),
        "compile": ("how many of the best --search compiles, minutes each", 3),
        "attention": ("who serves each kind of layer on --topology, and why others refuse", False),
        "table": ("window × ratio × context × mesh: what fits, what it costs, by formula", False),
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
