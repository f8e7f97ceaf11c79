"""A sweep's folder made of invented rows: three windows by three seeds, a text and a needle arm.

Nothing trains. Losses and scores are drawn so that every figure of the summary is there: documents
that correlate, seeds that matter, two learning rates of which the better differs by cell, a failed
run, a missing seed, two context lengths of which the first isn't the longest.
"""

import json

import numpy as np

from hybrid.ablate.report import results
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics import summary
from hybrid.evaluation.token_records import TokenRecords, load_records, save_records

WINDOWS, SEEDS, RATES, STEPS = (4, 16, 64), (0, 1, 2), (0.01, 0.03), (10, 20, 30)
LENGTHS = {"text": (32, 64, 16), "needle": (32, 64)}
BASELINE = {"model.window_size": 64}


def text_scores(rng, length: int, quality: float) -> TokenRecords:
    """Twelve documents of uneven length in windows of `length` tokens."""
    sizes = np.random.default_rng(7).integers(3, 90, size=12)  # the same text in every run
    document = np.repeat(np.arange(12), sizes)
    position = np.concatenate([np.arange(size) % length for size in sizes])
    sight = np.random.default_rng(8).integers(0, 3, len(position))
    nll = quality + rng.normal(0, 0.3, 12)[document] + rng.gamma(2.0, 0.5, len(position))
    return TokenRecords(
        nll=nll.astype(np.float32),
        position=position.astype(np.int32),
        document=document.astype(np.int32),
        repeat_distance=np.where(sight == 2, position // 2, 0).astype(np.int32),
    )


def needle_scores(rng, length: int, reach: int) -> TokenRecords:
    """Forty rows, one answer each, at four distances; known within `reach` tokens."""
    distance = np.resize([2, 8, 20, 30], 40)
    correct = rng.random(40) < np.where(distance < reach, 0.97, 0.1)
    return TokenRecords(
        nll=np.where(correct, 0.1, 3.0).astype(np.float32) + rng.random(40).astype(np.float32),
        position=np.full(40, length - 1, np.int32),
        document=np.arange(40, dtype=np.int32),
        correct=correct,
        distance=distance.astype(np.int32),
        num_pairs=np.resize([1, 1, 2], 40).astype(np.int32),
    )


def records_of_run(task: str, window: int, seed: int, rate: float) -> dict[int, TokenRecords]:
    rng = np.random.default_rng([window, seed, int(rate * 100), len(task)])
    better = 0.01 if window == 4 else 0.03
    quality = 1.0 - 0.1 * np.log2(window) + 0.05 * seed + (0 if rate == better else 0.4)
    if task == "text":
        return {length: text_scores(rng, length, quality) for length in LENGTHS[task]}
    reach = 2 * window if rate == better else 3
    return {length: needle_scores(rng, length, reach) for length in LENGTHS[task]}


def write_run(folder, task: str, window: int, seed: int, rate: float) -> RunResult:
    """The raw files of a run in its workdir, and what the sweep knows about it."""
    name, workdir = f"window_size={window}", f"runs/{task}-{window}-{seed}-{rate}"
    path = folder / workdir
    path.mkdir(parents=True)
    scores = records_of_run(task, window, seed, rate)
    loss = float(np.mean(scores[32].nll, dtype=np.float64))
    rows = [
        {"step": step, "eval/loss": loss + 0.02 * (30 - step) * (1 + seed), "eval/perplexity": 2.0}
        for step in STEPS
    ]
    noise = [{"step": step, "loss": 9.0, "tokens_per_second": 1e3} for step in range(1, 31)]
    lines = sorted([*noise, *rows], key=lambda row: row["step"])
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": {"window_size": window},
        "training": {"seed": seed, "context_length": 32},
        "optimizer": {"learning_rate": rate},
        "eval": {"context_length": [0, *LENGTHS[task][1:]]},
    }
    (path / "config.json").write_text(json.dumps(config))
    save_records(path / "scores.npz", scores)
    flops = 1e9 * (100 + window)
    return RunResult(
        name=name,
        arm="" if task == "text" else task,
        overrides={"model.window_size": window},
        seed=seed,
        learning_rate=rate,
        status="finished",
        metrics=rows[-1],
        workdir=workdir,
        task=task,
        num_params=1000 + window,
        flops_per_token=flops / 3e4,
        num_steps=30,
        tokens=30_000,
        train_flops=flops,
        kv_cache_bytes=window * 64,
        cache_context=64,
        reach=2 * (window - 1) + 1,
        letters="LL",
        tokens_per_second=1000.0 + 10 * seed - window,
        curve=[[row["step"], flops * row["step"] / 30, row["eval/loss"]] for row in rows],
    )


def make(folder) -> SweepResults:
    """Writes the whole sweep with its results and returns them."""
    runs = [
        write_run(folder, task, window, seed, rate)
        for task in ("text", "needle")
        for window in WINDOWS
        for rate in RATES
        for seed in SEEDS
        if (task, window, seed) != ("text", 16, 1)
    ]
    runs.insert(
        8,
        RunResult(
            name="window_size=16",
            arm="",
            overrides={"model.window_size": 16},
            seed=1,
            learning_rate=0.03,
            status="failed",
            error="out of memory",
        ),
    )
    arms = summary.summarize(
        runs, lambda run: load_records(folder / run.workdir / "scores.npz"), BASELINE
    )
    settings = {"name": "synthetic", "match": "tokens", "baseline": BASELINE, "seeds": SEEDS}
    found = SweepResults(settings, tuple(runs), arms)
    results.write(found, folder)
    return found
