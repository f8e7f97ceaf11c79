"""The speed of two versions of this repository, on the CPU, in one interleaved run.

    python -m benchmarks.versions --old=CHECKOUT             about 15 minutes; --quick about 7
    python -m benchmarks.versions --old=CHECKOUT --only 16x512 decode-1x2048-value

Each version is a process in its own checkout, so that it runs its own `benchmarks/ours.py` and
`decode_ours.py`; they are asked in turn, round after round, the first of a round the second of the
next. The table says whether their first losses or tokens are equal and whether they compiled the
same programs (what takes equal time then), and a ratio above 1 that the new version is faster.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import decode, machine, programs, train_step
from benchmarks.model import TRAIN_SHAPES, Shape
from benchmarks.train_step import SETTLE
from benchmarks.workers import Worker, quiet

HERE = Path(__file__).resolve().parents[1]
OLD, NEW = "old", "new"
FORWARD = "forward-16384"
DECODE_SHAPES = (Shape(1, 2048), Shape(8, 2048), Shape(1, 16_384))
LAYOUTS = ("value", "value_and_rotated")
READINGS = {"train": 2, "forward": 2, "decode": 4}  # a turn


class Task(NamedTuple):
    """What is timed: the worker's module and arguments, train, forward or decode, the shape."""

    worker: tuple[str, ...]
    kind: str
    shape: Shape
    num_microbatches: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a reading."""
        return self.shape.rows * decode.STEPS if self.kind == "decode" else self.shape.tokens


OURS = ("benchmarks.ours",)
TASKS = {
    **{
        shape.name: Task(OURS, "train", shape, train_step.MICROBATCHES[shape.name])
        for shape in TRAIN_SHAPES
    },
    FORWARD: Task(OURS, "forward", train_step.TASKS[FORWARD][1]),
    **{
        f"decode-{shape.name}-{layout}": Task(("benchmarks.decode_ours", layout), "decode", shape)
        for layout, shape in itertools.product(LAYOUTS, DECODE_SHAPES)
    },
}


def main(argv: list[str] | None = None) -> None:
    """Runs the tasks, prints the table and writes `results/versions.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", required=True, type=Path, help="checkout to compare with")
    parser.add_argument("--new", default=HERE, type=Path, help="checkout that is compared")
    parser.add_argument("--quick", action="store_true", help="three rounds in place of ten")
    parser.add_argument("--rounds", type=int, help="so many")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--name", default="versions", help="the result's file name")
    arguments = parser.parse_args(argv)
    checkouts = {OLD: arguments.old.resolve(), NEW: arguments.new.resolve()}
    rounds = arguments.rounds or (3 if arguments.quick else 10)
    result = run(arguments.only, checkouts, rounds)
    print(markdown(result))
    print("written:", machine.save(arguments.name, result))


def run(tasks: list[str], checkouts: dict[str, Path], rounds: int) -> dict[str, Any]:
    """The whole comparison as one JSON-able value."""
    rows = []
    for words, names in itertools.groupby(tasks, lambda name: TASKS[name].worker):
        workers = {}
        with tempfile.TemporaryDirectory() as folder:
            dumps = {side: Path(folder, side) for side in checkouts}
            try:
                for side, checkout in checkouts.items():
                    dumps[side].mkdir()
                    flags = programs.flags(dumps[side])
                    workers[side] = Worker(*words, checkout=checkout, xla_flags=flags)
                for name in names:
                    row = {"task": name, **run_task(TASKS[name], workers, rounds)}
                    compiled = (programs.take(dumps[side]) for side in (OLD, NEW))
                    rows.append(row | {"programs": programs.difference(*compiled)})
                    print(_line(rows[-1]), flush=True)
            finally:
                for worker in workers.values():
                    worker.close()
    return {"machine": machine.describe(), "rounds": rounds, "rows": rows}


def run_task(task: Task, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Both versions prepared, compared, then timed in turn."""
    first = {side: _prepare(task, worker, rounds) for side, worker in workers.items()}
    readings: dict[str, list] = {side: [] for side in workers}
    for number in range(rounds):
        for side in (OLD, NEW) if number % 2 == 0 else (NEW, OLD):
            readings[side] += _time(task, workers[side])
            time.sleep(SETTLE)
    for worker in workers.values():
        worker.ask("release")
    sides = {side: summary(task.tokens, of_side) for side, of_side in readings.items()}
    return {"same": first[OLD] == first[NEW], **sides}


def _prepare(task: Task, worker: Worker, rounds: int) -> list:
    """What both versions should agree in: the losses or tokens of the first steps."""
    shape = list(task.shape)
    if task.kind == "decode":
        num_new = decode.AGREE + decode.STEPS * READINGS["decode"] * rounds
        return worker.ask("prepare", shape=shape, num_new=num_new)["tokens"]
    extra = {"num_microbatches": task.num_microbatches} if task.num_microbatches else {}
    return worker.ask(f"prepare_{task.kind}", shape=shape, warmup=2, **extra)["losses"]


def _time(task: Task, worker: Worker) -> list[tuple[float, float]]:
    count = READINGS[task.kind]
    if task.kind == "decode":
        return worker.ask("time", count=count, num_tokens=decode.STEPS)
    return worker.ask(f"time_{task.kind}", count=count)


def summary(tokens: int, readings: list[tuple[float, float]]) -> dict[str, Any]:
    """Tokens a second: the best quiet reading, and the median of all."""
    undisturbed = quiet(readings)
    every = [seconds for seconds, _ in readings]
    return {
        "best": tokens / min(undisturbed or every),
        "median": tokens / statistics.median(every),
        "quiet": len(undisturbed),
        "readings": readings,
    }


def ratios(row: dict[str, Any]) -> tuple[float, float]:
    """New over old: of the best quiet readings, and of the medians."""
    return tuple(row[NEW][key] / row[OLD][key] for key in ("best", "median"))


# --- Tables ----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    header = (
        *("task", "old, tokens/s, best", "median", "new, best", "median"),
        *("new / old, best", "median", "quiet readings", "first numbers", "compiled programs"),
    )
    caption = f"{machine.line(result['machine'])}; {result['rounds']} interleaved rounds."
    return "\n\n".join([machine.table(header, map(_cells, result["rows"])), caption])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    speeds = (f"{row[side][key]:.0f}" for side in (OLD, NEW) for key in ("best", "median"))
    quiet = ", ".join(
        f"{row[side]['quiet']} of {len(row[side]['readings'])}" for side in (OLD, NEW)
    )
    best, median = ratios(row)
    same = "equal" if row["same"] else "differ"
    ends = (quiet, same, row["programs"])
    return (row["task"], *speeds, f"**{best:.3f}**", f"{median:.3f}", *ends)


def _line(row: dict[str, Any]) -> str:
    best, median = ratios(row)
    return (
        f"{row['task']}: new / old {best:.3f} (medians {median:.3f}), programs: {row['programs']}"
    )


if __name__ == "__main__":
    main()
