"""Decoding against transformers, on the CPU: tokens a second behind a prompt.

    python -m benchmarks.decode                  about 12 minutes; --quick about 6
    python -m benchmarks.decode --only 1x2048

Every side is a process of its own that stays alive; they are asked in turn, round after round. All
have the same weights, and their greedy continuations of the prompt must agree before anything is
timed. A reading is 64 steps; the best quiet one counts, as in `train_step`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.model import MODEL, NUM_PARAMS, Shape
from benchmarks.train_step import SETTLE
from benchmarks.workers import Worker, quiet

LAYOUTS = ("value", "value_and_rotated", "keys_and_values")
OURS = {f"hybrid, {layout.replace('_', ' ')}": layout for layout in LAYOUTS}
DYNAMIC, COMPILED = "transformers, dynamic cache", "transformers, static cache, torch.compile"
SIDES = {
    **{name: ("benchmarks.decode_ours", layout) for name, layout in OURS.items()},
    DYNAMIC: ("benchmarks.decode_peer", "dynamic", "eager"),
    COMPILED: ("benchmarks.decode_peer", "static", "compile"),
}
TASKS = {shape.name: shape for rows in (1, 8) for shape in (Shape(rows, 2048), Shape(rows, 16_384))}
BEST, VALUE = 2.5, 1.8  # times the fastest peer: the best layout, and the value alone
STEPS = 64
AGREE = 32


def main(argv: list[str] | None = None) -> None:
    """Runs the tasks, prints the tables and writes `results/decode.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds in place of four")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--name", default="decode", help="the result's file name")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.only, 2 if arguments.quick else 4, Path(folder) / "weights.npz")
    print(markdown(result))
    print("written:", machine.save(arguments.name, result))


def run(tasks: list[str], rounds: int, weights: Path) -> dict[str, Any]:
    """The whole comparison as one JSON-able value."""
    workers = {name: Worker(*side) for name, side in SIDES.items()}
    first = workers[next(iter(OURS))]
    try:
        first.ask("save_weights", path=str(weights))
        for name in (DYNAMIC, COMPILED):
            workers[name].ask("load", path=str(weights))
        result = {
            "machine": machine.describe(),
            "rounds": rounds,
            "sides": {name: worker.ask("describe") for name, worker in workers.items()},
            "bandwidth": first.ask("bandwidth"),
            "rows": [],
        }
        for task in tasks:
            result["rows"] += run_task(task, workers, rounds)
        result["bandwidth"] += first.ask("bandwidth")
        steps = {"count": 4, "num_tokens": STEPS}
        result["local"] = {
            str(length): first.ask("local_layers", length=length, **steps)
            for length in (2048, 16_384, 2048, 16_384)
        }
    finally:
        for worker in workers.values():
            worker.close()
    return result


def run_task(task: str, workers: dict[str, Worker], rounds: int) -> list[dict[str, Any]]:
    """One row a side: prepared, compared, then timed in turn."""
    shape = list(TASKS[task])
    rows = {}
    for name, worker in workers.items():
        prepared = worker.ask("prepare", shape=shape, num_new=AGREE + STEPS * rounds)
        rows[name] = {"task": task, "side": name, **prepared, "readings": []}
        time.sleep(SETTLE)
    check_tokens(rows)
    for _ in range(rounds):
        for name, row in rows.items():
            row["readings"] += workers[name].ask("time", count=1, num_tokens=STEPS)
            time.sleep(SETTLE)
    for worker in workers.values():
        worker.ask("release")
    return [_summary(row, TASKS[task]) for row in rows.values()]


def check_tokens(rows: dict[str, dict[str, Any]]) -> None:
    """Raises: AssertionError if two sides go on differently."""
    (name, first), *others = rows.items()
    for other, row in others:
        if row["tokens"] != first["tokens"]:
            raise AssertionError(f"{name} and {other} go on differently")


def _summary(row: dict[str, Any], shape: Shape) -> dict[str, Any]:
    undisturbed = quiet(row["readings"])
    seconds = undisturbed or [seconds for seconds, _ in row["readings"]]
    tokens = STEPS * shape.rows
    del row["tokens"]
    return row | {
        "quiet": len(undisturbed),
        "tokens_per_second": tokens / min(seconds),
        "median_tokens_per_second": tokens / statistics.median(seconds),
    }


# --- Tables ----------------------------------------------------------------------------------


def ratios(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """For each task, our best layout and the value alone over the fastest peer."""
    out = {}
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        speed = {r["side"]: r["tokens_per_second"] for r in result["rows"] if r["task"] == task}
        peer = max(value for side, value in speed.items() if side not in OURS)
        ours = [speed[side] for side in OURS]
        out[task] = max(ours) / peer, ours[0] / peer
    return out


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result."""
    best = ratios(result)
    header = (
        "prompt",
        "side",
        "tokens/s, best",
        "median",
        "prompt read in, s",
        "cache, MB",
        "quiet",
    )
    rows = [
        (
            _title(row["task"]),
            row["side"],
            f"{row['tokens_per_second']:.0f}",
            f"{row['median_tokens_per_second']:.0f}",
            f"{row['prompt_seconds']:.2f}",
            f"{row['cache_bytes'] / 1e6:.1f}" if "cache_bytes" in row else "",
            f"{row['quiet']} of {len(row['readings'])}",
        )
        for row in result["rows"]
    ]
    lines = [
        (_title(task), f"**{ours:.2f}** (target {BEST})", f"**{value:.2f}** (target {VALUE})")
        for task, (ours, value) in best.items()
    ]
    against = ("prompt", "best layout against the fastest peer", "value alone against it")
    tables = [machine.table(against, lines), machine.table(header, rows)]
    lines = _bandwidth_line(result), _local_line(result), _machine_line(result)
    return "\n\n".join([*tables, *lines])


def _title(task: str) -> str:
    return f"{TASKS[task].rows} × {TASKS[task].length:,}"


def _bandwidth_line(result: dict[str, Any]) -> str:
    """What a step at batch 1 reads, against what the machine can read."""
    ceiling, parts = max(result["bandwidth"]), []
    for row in result["rows"]:
        if TASKS[row["task"]].rows == 1 and "cache_bytes" in row:
            read = 4 * NUM_PARAMS + row["cache_bytes"]
            share = 1e-9 * read * row["tokens_per_second"] / ceiling
            parts.append(f"{_title(row['task'])}, {row['side'].split(', ')[1]} {100 * share:.0f} %")
    return (
        f"Memory: a sum of 256 MB reads {min(result['bandwidth']):.0f} to {ceiling:.0f} GB/s. "
        f"Weights and cache, read once a token, are of that: {'; '.join(parts)}."
    )


def _local_line(result: dict[str, Any]) -> str:
    """A step of local layers alone behind a short and a long prompt."""
    steps = {int(n): 1e3 * min(s for s, _ in r) / STEPS for n, r in result["local"].items()}
    shown = ", ".join(f"{ms:.2f} ms behind {length:,} tokens" for length, ms in steps.items())
    return f"Six local layers alone, a step at batch 1: {shown}."


def _machine_line(result: dict[str, Any]) -> str:
    sides = "; ".join(
        f"{name}: {side['library']}, {side['threads']} threads, {side['compile']}"
        for name, side in result["sides"].items()
    )
    return (
        f"{machine.line(result['machine'])}; {result['rounds']} interleaved rounds of {STEPS} "
        f"steps, window {MODEL.window_size}, {MODEL.dtype}. {sides}."
    )


if __name__ == "__main__":
    main()
