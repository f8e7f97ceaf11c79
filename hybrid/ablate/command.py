"""The command behind `python -m hybrid.ablate`: run, summarise, report."""

import pathlib
import sys
from collections.abc import Iterator, Sequence

from hybrid import config as config_lib
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.report import notation
from hybrid.ablate.run import run_result
from hybrid.ablate.run import sweep as sweep_lib
from hybrid.ablate.run.cells import SweepRun, runs
from hybrid.ablate.run.evaluations import benchmarks
from hybrid.ablate.run.progress import SweepProgress
from hybrid.config import ConfigError
from hybrid.pages import load_page, split_spec
from hybrid.process import cli, distributed


def _run(arguments: cli.Arguments) -> int:
    distributed.refuse("a sweep")
    if arguments.flags.dry_run:
        config, name = load(arguments)
        print(cell_table(sweep_lib.with_trained_base(config), name))
        return cli.OK
    folder = pathlib.Path(arguments.require("workdir"))
    if arguments.flags.report_only:
        held = sweep_lib.read(folder)
        given = arguments.flags.config  # where given, it must be the folder's own
        return _report(sweep_lib.from_config(*load(arguments), folder) if given else held)
    sweep = sweep_lib.from_config(*load(arguments), folder)
    sweep_lib.run(sweep, SweepProgress())
    return _report(sweep)


def load(arguments: cli.Arguments) -> tuple[SweepConfig, str]:
    """The sweep of `--config` with its overrides, and its name.  Raises: ConfigError."""
    page = arguments.require("config")
    values = load_page(page)
    parsed = config_lib.parse_overrides(SweepConfig, arguments.overrides)
    path, argument = split_spec(page)
    name = ":".join([pathlib.Path(path).stem, *([argument] if argument else [])])
    config = config_lib.build(SweepConfig, config_lib.updated(values, parsed))
    coordinator = config.base.distributed.coordinator
    if coordinator:
        problem = "a sweep runs in one process"
        raise ConfigError("base.distributed.coordinator", problem, coordinator, "empty")
    return config, name


def _report(sweep: sweep_lib.Sweep) -> int:
    # scipy.stats and matplotlib take a second, which only a report pays.
    from hybrid.ablate.report import page, results, sentences

    collected = results.collect(sweep)
    results.write(collected, sweep.folder)
    page.write(collected, sweep.folder)
    for arm, lines in sentences.by_arm(collected).items():
        print("\n".join([f"{arm}:", *lines] if arm else lines))
    print(f"report: {sweep.folder / page.REPORT}")
    failed = [run for run in collected.runs if run.status == run_result.FAILED]
    for run in failed:
        path = sweep.folder / run.workdir / sweep_lib.ERROR
        print(f"failed: {run.name}, seed {run.seed}: {path}", file=sys.stderr)
    return cli.FAILED if failed else cli.OK


# --- --dry_run -------------------------------------------------------------------------------

_ASKED = ("num_samples", "num_tokens")
_HEAD = ["arm", "cell", "layers", "parameters", "FLOPs/token", "KV cache", "steps", "changed"]


def cell_table(config: SweepConfig, name: str) -> str:
    """The cells of a sweep with what they cost, as text."""
    all_runs = runs(config)
    cells = {(run.cell.arm, run.cell.name): run for run in all_runs}
    rows = [_HEAD, *(list(_row(config, run)) for run in cells.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    rates = f" × {len(config.learning_rates)} learning rates" if config.learning_rates else ""
    count = f"{len(cells)} cells{rates} × {len(config.seeds)} seeds = {len(all_runs)} runs"
    head = [f"{name}: {count}, match={config.match}", *_asked(config, all_runs), ""]
    return "\n".join([*head, *lines])


def _asked(config: SweepConfig, all_runs: Sequence[SweepRun]) -> Iterator[str]:
    """What each benchmark costs, a line each."""
    for name, asked in benchmarks(config, all_runs).items():
        samples, tokens = (sum(getattr(each, kind) for each in asked) for kind in _ASKED)
        tasks = ", ".join(dict.fromkeys(task for each in asked for task in each.tasks))
        cost = f"{samples:,} samples of at most {notation.decimal(tokens)} tokens in all"
        yield f"evaluation {name} ({tasks}): {cost}, {len(asked)} runs"


def _row(config: SweepConfig, run: SweepRun) -> Iterator[str]:
    costs = run_result.costs(config, run.experiment)
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
    flags={
        "config": ("the sweep's page, PATH.py or PATH.py:ARG", pathlib.Path),
        "workdir": ("folder of the sweep, new or to go on with", pathlib.Path),
        "dry_run": ("print the cells with their costs; run and create nothing", False),
        "report_only": ("write results and report of what is there; run nothing", False),
    },
    config_class=SweepConfig,
    run=_run,
)
