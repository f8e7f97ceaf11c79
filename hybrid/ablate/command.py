"""The command behind `python -m hybrid.ablate`: plan, run, gather, report."""

import pathlib
import sys
from collections.abc import Iterator

from absl import flags

from hybrid import config as config_lib
from hybrid.ablate import gather, notation, results, sweep
from hybrid.ablate.cells import Planned, runs
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.progress import SweepProgress
from hybrid.process import cli


def _define(values: flags.FlagValues) -> None:
    def switch(name: str, doc: str) -> None:
        flags.DEFINE_boolean(name, False, doc, flag_values=values)

    page = "the sweep's page, PATH.py or PATH.py:ARG"
    flags.DEFINE_string("config", None, page, flag_values=values)
    folder = "folder of the sweep, new or to go on with"
    flags.DEFINE_string("workdir", None, folder, flag_values=values)
    switch("dry_run", "print the cells with their costs; run and create nothing")
    switch("report_only", "write results and report of what is there; run nothing")


def _run(arguments: cli.Arguments) -> int:
    if arguments.flags.dry_run:
        config, name = load(arguments)
        print(cell_table(sweep.of_trained(config), name))
        return cli.OK
    folder = pathlib.Path(arguments.require("workdir"))
    if arguments.flags.report_only:
        planned = _planned_before(arguments, folder)
    else:
        planned = sweep.prepare(*load(arguments), folder)
        sweep.run(planned, SweepProgress())
    return _report(planned)


def load(arguments: cli.Arguments) -> tuple[SweepConfig, str]:
    """The sweep of `--config` with its overrides, and its name.  Raises: ConfigError."""
    page = arguments.require("config")
    values = config_lib.load_page(page)
    parsed = config_lib.parse_overrides(SweepConfig, arguments.overrides)
    path, _, argument = page.partition(":")
    name = ":".join([pathlib.Path(path).stem, *([argument] if argument else [])])
    return config_lib.build(SweepConfig, config_lib.updated(values, parsed)), name


def _planned_before(arguments: cli.Arguments, folder: pathlib.Path) -> sweep.Sweep:
    """The sweep that the folder holds; a `--config` beside it must be the same."""
    held = sweep.read(folder)
    return sweep.plan(*load(arguments), folder) if arguments.flags.config else held


def _report(planned: sweep.Sweep) -> int:
    """Writes results and report; 1 if a cell failed."""
    from hybrid.ablate import report, words  # draws: half a second that only a report pays

    found = gather.write_results(planned)
    report.write(found, planned.folder)
    for arm, sentences in words.answer(found).items():
        print("\n".join([f"{arm}:", *sentences] if arm else sentences))
    print(f"report: {planned.folder / 'report.html'}")
    failed = [cell for cell in found["cells"] if cell["status"] == results.FAILED]
    for cell in failed:
        where = planned.folder / cell["workdir"] / sweep.ERROR
        print(f"failed: {cell['name']}, seed {cell['seed']}: {where}", file=sys.stderr)
    return cli.FAILED if failed else cli.OK


# --- --dry_run -------------------------------------------------------------------------------


def cell_table(config: SweepConfig, name: str) -> str:
    """The cells of a sweep with what they cost, as text."""
    planned = runs(config)
    first = {(run.cell.arm, run.cell.name): run for run in planned}
    rows = [_HEAD, *(list(_row(config, run)) for run in first.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    rates = f" × {len(config.learning_rates)} learning rates" if config.learning_rates else ""
    count = f"{len(first)} cells{rates} × {len(config.seeds)} seeds = {len(planned)} runs"
    return "\n".join([f"{name}: {count}, match={config.match}", "", *map(str.rstrip, lines)])


_HEAD = ["arm", "cell", "layers", "parameters", "FLOPs/token", "KV cache", "steps", "changed"]


def _row(config: SweepConfig, run: Planned) -> Iterator[str]:
    costs = gather.costs(config, run)
    yield run.cell.arm
    yield run.cell.name
    yield costs["letters"]
    yield f"{costs['num_params']:,}"
    yield notation.decimal(costs["flops_per_token"])
    yield notation.binary(costs["kv_cache_bytes"])
    yield str(costs["num_steps"] or notation.DASH)
    changed = run.cell.changed.items()
    yield ", ".join(f"{key} {old} → {new}" for key, (old, new) in changed)


COMMAND = cli.Command(
    name="python -m hybrid.ablate",
    doc="""
    Runs a sweep: one config, a few keys varied, several seeds; then writes results.json,
    results.csv, figures and report.html. The same command goes on with a sweep that was stopped.
    """,
    define=_define,
    config_class=SweepConfig,
    run=_run,
)
