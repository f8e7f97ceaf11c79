"""Our train step and forward loss against transformers' Gemma4ForCausalLM, on the CPU.

    python -m benchmarks.train_step              about 12 minutes; --quick about 5
    python -m benchmarks.train_step --only 16x512 4x2048      --only forward-16384

Every side is a process of its own that stays alive; they are asked in turn, round after round, so
that a slow minute of the machine hits all of them. All start from the same weights, and the losses
of the first steps must agree before anything is timed: that compares forward, gradients and AdamW.
Matrix products of 4096² are timed before and after, in the same processes: the ceiling.

A reading during which other processes used 10 % of the machine or more is marked, and left out
where a quieter one of the same side exists.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.model import NUM_PARAMS, TRAIN_SHAPES, Shape
from benchmarks.workers import Worker, quiet

OURS = "hybrid"
SDPA, COMPILED, FLEX = (
    "transformers, sdpa",
    "transformers, sdpa, torch.compile",
    "transformers, flex_attention, torch.compile",
)
SIDES = {
    OURS: ("benchmarks.ours",),
    SDPA: ("benchmarks.peer", "sdpa", "eager"),
    COMPILED: ("benchmarks.peer", "sdpa", "compile"),
    FLEX: ("benchmarks.peer", "flex_attention", "compile"),  # has no backward on the CPU
}
MICROBATCHES = {"16x512": 4, "4x2048": 4, "1x8192": 1}  # ours; what was fastest here
TASKS = {
    **{shape.name: ("train", shape, (OURS, SDPA, COMPILED)) for shape in TRAIN_SHAPES},
    "forward-16384": ("forward", Shape(1, 16_384), (OURS, SDPA, COMPILED, FLEX)),
    "forward-65536": ("forward", Shape(1, 65_536), (OURS,)),
}
# Times the fastest peer, which a run should reach on a quiet machine.
TARGETS = {"16x512": 1.6, "4x2048": 2.2, "1x8192": 3.5, "forward-16384": 1.6}
SAME_LOSS = 1e-4  # before the first step
SAME_TRAINING = 1e-3  # after updates, where rounding grows
READINGS = 2  # a turn: after the other sides' turns a side's first step can be slower
SETTLE = 0.5  # seconds in which a finished side's threads go to sleep


def main(argv: list[str] | None = None) -> None:
    """Runs the tasks, prints the tables and writes `results/train_step.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, fewer warm-ups")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--name", default="train_step", help="the result's file name")
    arguments = parser.parse_args(argv)
    rounds, warmup = (2, 2) if arguments.quick else (4, 3)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.only, rounds, warmup, Path(folder) / "weights.npz")
    print(markdown(result))
    print("written:", machine.save(arguments.name, result))


def run(tasks: list[str], rounds: int, warmup: int, weights: Path) -> dict[str, Any]:
    """The whole comparison as one JSON-able value."""
    names = [name for name in SIDES if any(name in TASKS[task][2] for task in tasks)]
    workers = {name: Worker(*SIDES[name]) for name in names}
    try:
        _same_weights(workers, weights)
        result = {
            "machine": machine.describe(),
            "rounds": rounds,
            "warmup": warmup,
            "sides": {name: w.ask("describe", shape=[1, 2048]) for name, w in workers.items()},
            "ceiling": {"before": _ceilings(workers)},
            "rows": [],
        }
        for task in tasks:
            result["rows"] += run_task(task, workers, rounds, warmup)
        result["ceiling"]["after"] = _ceilings(workers)
    finally:
        for worker in workers.values():
            worker.close()
    return result


def _same_weights(workers: dict[str, Worker], weights: Path) -> None:
    counts = {OURS: workers[OURS].ask("save_weights", path=str(weights))}
    for name in workers.keys() - {OURS}:
        counts[name] = workers[name].ask("load", path=str(weights))
    wrong = {name: count for name, count in counts.items() if count != NUM_PARAMS}
    if wrong:
        raise AssertionError(f"the model has {NUM_PARAMS} trained parameters, got {wrong}")


def _ceilings(workers: dict[str, Worker]) -> dict[str, list[float]]:
    """GFLOP/s of matrix products with our library and theirs."""
    out = {}
    for library, name in (("jax", OURS), ("torch", SDPA)):
        if name in workers:
            out[library] = workers[name].ask("ceiling")
            time.sleep(SETTLE)
    return out


def run_task(task: str, workers: dict[str, Worker], rounds: int, warmup: int) -> list[dict]:
    """One row a side: prepared, compared, then timed in turn."""
    kind, shape, names = TASKS[task]
    if "65536" in task:  # one side and slow: in a process of its own, so that its peak is its own
        return [_alone(task, shape)]
    rows = {name: _prepared(task, name, workers[name], warmup) for name in names}
    _check_losses(rows)
    for _ in range(rounds):
        for name, row in rows.items():
            row["readings"] += workers[name].ask(f"time_{kind}", count=READINGS)
            time.sleep(SETTLE)
    flops = workers[OURS].ask("flops", shape=list(shape)) * (3 if kind == "train" else 1)
    for name in names:
        workers[name].ask("release")
    return [_summary(row, shape, flops) for row in rows.values()]


def _prepared(task: str, name: str, worker: Worker, warmup: int) -> dict[str, Any]:
    kind, shape, _ = TASKS[task]
    extra = {}
    if kind == "train" and name == OURS:
        extra = {"num_microbatches": MICROBATCHES[task]}
    warmup = warmup if kind == "train" else 1
    prepared = worker.ask(f"prepare_{kind}", shape=list(shape), warmup=warmup, **extra)
    return {"task": task, "side": name, "warmup": warmup, **extra, **prepared, "readings": []}


def _check_losses(rows: dict[str, dict[str, Any]]) -> None:
    """Raises: AssertionError if a side starts elsewhere or trains differently."""
    ours = rows[OURS]["losses"]
    for name, row in rows.items():
        gaps = [abs(a - b) for a, b in zip(ours, row["losses"], strict=True)]
        if gaps[0] > SAME_LOSS or max(gaps) > SAME_TRAINING:
            raise AssertionError(f"losses differ: {OURS} {ours}, {name} {row['losses']}")


def _alone(task: str, shape: Shape) -> dict[str, Any]:
    worker = Worker(*SIDES[OURS])
    try:
        before = worker.ask("peak_bytes")
        row = _prepared(task, OURS, worker, 1)
        row["readings"] = worker.ask("time_forward", count=1)
        row |= {"peak_bytes": worker.ask("peak_bytes"), "peak_bytes_before": before}
        return _summary(row, shape, worker.ask("flops", shape=list(shape)))
    finally:
        worker.close()


def _summary(row: dict[str, Any], shape: Shape, flops: float) -> dict[str, Any]:
    undisturbed = quiet(row["readings"])
    seconds = undisturbed or [seconds for seconds, _ in row["readings"]]
    return row | {
        "quiet": len(undisturbed),
        "tokens_per_second": shape.tokens / min(seconds),
        "median_tokens_per_second": shape.tokens / statistics.median(seconds),
        "gflops_per_second": 1e-9 * flops / min(seconds),
    }


# --- Tables ----------------------------------------------------------------------------------


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """For each task, our best tokens/s over the best of the fastest peer."""
    out = {}
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        speed = {r["side"]: r["tokens_per_second"] for r in result["rows"] if r["task"] == task}
        peers = [value for side, value in speed.items() if side != OURS]
        if peers:
            out[task] = speed[OURS] / max(peers)
    return out


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result."""
    return "\n\n".join([_speeds(result), _settings(result), _ceiling_line(result)])


def _speeds(result: dict[str, Any]) -> str:
    ceiling, best = _best_ceiling(result), ratios(result)
    rows = []
    for row in result["rows"]:
        ratio = ""
        if row["side"] == OURS and row["task"] in best:
            ratio = f"**{best[row['task']]:.2f}** (target {TARGETS[row['task']]})"
        rows.append(
            (
                _title(row["task"]),
                row["side"],
                f"{row['tokens_per_second']:.0f}",
                f"{row['median_tokens_per_second']:.0f}",
                f"{100 * row['gflops_per_second'] / ceiling:.0f} %",
                f"{row['compile_seconds']:.0f}",
                f"{row['losses'][0]:.5f}",
                f"{row['quiet']} of {len(row['readings'])}",
                ratio,
            )
        )
    header = (
        *("task", "side", "tokens/s, best", "median", "of the ceiling"),
        *("first call, s", "first loss", "quiet readings", "against the fastest peer"),
    )
    notes = [
        f"{_title(row['task'])}: peak memory of the process {row['peak_bytes'] / 2**30:.2f} GiB "
        f"({row['peak_bytes_before'] / 2**30:.2f} before)."
        for row in result["rows"]
        if "peak_bytes" in row
    ]
    return "\n\n".join([machine.table(header, rows), *notes])


def _title(task: str) -> str:
    kind, shape, _ = TASKS[task]
    return f"{kind} {shape.rows}×{shape.length}"


def _settings(result: dict[str, Any]) -> str:
    parts = {
        row["task"]: row["num_microbatches"]
        for row in result["rows"]
        if row.get("num_microbatches")
    }
    rows = [
        (
            name,
            *(side[key] for key in ("library", "threads", "dtype", "attention", "compile")),
            ", ".join(f"{_title(t)}: {n}" for t, n in parts.items()) if name == OURS else "1",
            f"{result['warmup']} steps; forward 1",
        )
        for name, side in result["sides"].items()
    ]
    header = (
        *("side", "library", "threads", "dtype", "attention", "compile mode"),
        *("micro-batches", "warm-up"),
    )
    return machine.table(header, rows)


def _ceiling_line(result: dict[str, Any]) -> str:
    def both(library):
        return "; ".join(
            f"{when} {min(values[library]):.0f} to {max(values[library]):.0f}"
            for when, values in result["ceiling"].items()
            if library in values
        )

    libraries = result["ceiling"]["before"]
    readings = "; ".join(f"{library}: {both(library)}" for library in libraries)
    return (
        f"Ceiling, GFLOP/s of float32 products of 4096²: {readings}. Shares are of the highest, "
        f"with the model's FLOPs (visible pairs only, backward twice the forward).\n\n"
        f"{machine.line(result['machine'])}; {result['rounds']} interleaved rounds"
        f"{result.get('note', '')}; both sides keep freed memory (mallopt)."
    )


def _best_ceiling(result: dict[str, Any]) -> float:
    return max(max(v) for values in result["ceiling"].values() for v in values.values())


if __name__ == "__main__":
    main()
