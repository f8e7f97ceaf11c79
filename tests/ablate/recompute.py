"""Recomputes a sweep's summary from its raw rows and lists every figure that differs.

    python tests/ablate/recompute.py SWEEP_WORKDIR        exits 1 if anything differs

Independent of what it checks: nothing of `hybrid` is imported. It reads each run's files
(`raw_rows.py`), and of results.json the `cells` for what each run is and costs; sums are plain
loops and dictionaries, quantiles and intervals scipy.stats'.
"""

import collections
import json
import math
import pathlib
import statistics
import sys

import numpy as np
import scipy.stats
from raw_rows import Raw, same

COSTS = (
    *("num_params", "flops_per_token", "train_flops", "kv_cache_bytes", "cache_context"),
    *("reach", "letters", "changed"),
)


# --- Statistics, the long way --------------------------------------------------------------------


def over_seeds(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "std": None, "num": len(values)}
    std = statistics.stdev(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * std / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "std": std, "num": len(values)}


def over_documents(values, documents):
    """Clustered: the cross products of all pairs of tokens of one document, summed as such."""
    groups = collections.defaultdict(list)
    for value, document in zip(values.tolist(), documents.tolist(), strict=True):
        groups[document].append(value)
    mean = math.fsum(values.tolist()) / len(values)
    count = len(groups)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "num_documents": count}
    products = 0.0
    for group in groups.values():
        centred = [value - mean for value in group]
        total = math.fsum(centred)
        own = math.fsum(value * value for value in centred)
        crossed = total * total - own  # Σ_i Σ_{j≠i}
        products += own + crossed
    error = math.sqrt(products / len(values) ** 2 * count / (count - 1))
    half = scipy.stats.t.ppf(0.975, count - 1) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "num_documents": count}


def over_answers(right, num):
    interval = scipy.stats.binomtest(right, num).proportion_ci(0.95, method="wilson")
    return {"mean": right / num, "low": interval.low, "high": interval.high, "num": num}


def pick(entry, *names):
    return None if entry is None else {name: entry[name] for name in names}


# --- The summary anew ----------------------------------------------------------------------------


def recompute(folder):
    """The summary and what is wrong with the rows themselves."""
    results = json.loads((folder / "results.json").read_text())
    arms, problems = [], []
    for arm in dict.fromkeys(cell["arm"] for cell in results["cells"]):
        cells = {}
        for entry in results["cells"]:
            if entry["arm"] == arm:
                key = json.dumps(entry["overrides"], sort_keys=True)
                cells.setdefault(key, Cell(entry)).add(folder, entry)
        for cell in cells.values():
            problems += [problem for raws in cell.rates.values() for raw in raws
                         for problem in raw.problems]  # fmt: skip
            cell.choose()
        if any(cell.runs for cell in cells.values()):
            arms.append(arm_entry(arm, list(cells.values()), results.get("baseline")))
    return {"arms": arms}, problems


class Cell:
    """A cell's finished runs by learning rate; `runs` are those of the best, by seed."""

    def __init__(self, entry):
        self.name, self.overrides, self.rates, self.runs = entry["name"], entry["overrides"], {}, {}

    def add(self, folder, entry):
        rate = self.rates.setdefault(entry["learning_rate"], [])
        if entry["status"] == "finished":
            raw = Raw(folder, entry)
            if raw.loss is not None:
                rate.append(raw)
                rate.sort(key=lambda raw: raw.seed)

    def choose(self):
        def rank(item):
            losses = [raw.loss for raw in item[1]]
            return -len(losses), sum(losses) / len(losses) if losses else 0.0

        self.rate, best = sorted(self.rates.items(), key=rank)[0]
        self.runs = {raw.seed: raw for raw in best}

    @property
    def mean_loss(self):
        return over_seeds([raw.loss for raw in self.runs.values()])["mean"]


def arm_entry(name, cells, baseline):
    partners = [partner_of(cells, cell, baseline) for cell in cells]
    entries = [cell_entry(cell, partner) for cell, partner in zip(cells, partners, strict=True)
               if cell.runs]  # fmt: skip
    for entry in entries:
        own = entry["kv_cache_bytes"]
        better = [other for other in entries
                  if own is not None and other["kv_cache_bytes"] is not None
                  and other["kv_cache_bytes"] < own
                  and other["loss"]["mean"] < entry["loss"]["mean"]]  # fmt: skip
        entry["on_front"] = own is not None and not better
    names = {partner.name if partner else None for partner in partners}
    runs = [raw for cell in cells for raw in cell.runs.values()]
    lengths = [length for raw in runs if raw.scores for length in raw.lengths]
    return {
        "arm": name,
        "task": runs[0].cell["task"],
        "chance": runs[0].cell["chance"],
        "baseline": names.pop() if len(names) == 1 else None,
        "context_lengths": list(dict.fromkeys(lengths)),
        "cells": entries,
    }


def partner_of(cells, cell, baseline):
    baseline = cells[0].overrides if baseline is None else baseline
    for wanted in (baseline, cell.overrides | baseline):
        for other in cells:
            if other.overrides == wanted:
                return other
    return None


def cell_entry(cell, partner):
    runs = [cell.runs[seed] for seed in sorted(cell.runs)]
    other = partner if partner is not None and partner is not cell else None
    common = [seed for seed in sorted(cell.runs) if other and seed in other.runs]
    difference = None
    if common:
        difference = over_seeds([cell.runs[s].loss - other.runs[s].loss for s in common])
    costs = {name: runs[0].cell[name] for name in COSTS}
    speeds = [raw.cell["tokens_per_second"] for raw in runs]
    speeds = [speed for speed in speeds if speed is not None]
    return {
        "name": cell.name,
        "overrides": cell.overrides,
        "is_baseline": partner is cell,
        "partner": partner.name if partner else None,
        "num_seeds": len(runs),
        "learning_rate": cell.rate,
        "learning_rates": [
            {
                "learning_rate": rate,
                "loss": sum(raw.loss for raw in raws) / len(raws) if raws else None,
                "num_seeds": len(raws),
            }
            for rate, raws in cell.rates.items()
        ],
        "loss": pick(over_seeds([raw.loss for raw in runs]), "mean", "low", "high", "std"),
        "difference": pick(difference, "mean", "low", "high", "num"),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "effective_speedup": speedup(cell, partner) if partner else None,
        **costs,
        **scored(cell, other),
    }


def scored(cell, other):
    """What scores.npz tells of a cell, and of its difference to `other`."""
    runs = {seed: raw for seed, raw in cell.runs.items() if raw.scores}
    others = {seed: raw for seed, raw in other.runs.items() if raw.scores} if other else {}
    names = ("difference_documents", "accuracy")
    lists = ("by_context", "by_position", "repeats", "accuracy_by_seed", "by_distance")
    lists += ("by_num_pairs", "benchmarks")
    found = dict.fromkeys(names) | {name: [] for name in lists}
    if not runs:
        return found
    any_run = next(iter(runs.values()))
    first, longest = any_run.first, any_run.longest
    difference = token_difference(runs, others, first)
    if difference is not None:
        found["difference_documents"] = over_documents(
            difference, any_run.scores[first]["document"]
        )
    found["by_context"] = [by_context(runs, others, length) for length in any_run.lengths]
    if any_run.cell["task"] == "text":
        at = any_run.scores[longest]
        found["by_position"] = buckets(runs, others, longest, at["position"])
        found["repeats"] = buckets(runs, others, longest, at["repeat_distance"])
        found["repeats"] = [entry for entry in found["repeats"] if entry["end"] > 1]
    else:
        found["accuracy"] = answers(runs, first)
        found["accuracy_by_seed"] = [
            {"seed": seed, **answers({seed: runs[seed]}, first)} for seed in sorted(runs)
        ]
        found["by_distance"] = answers_by(runs, first, "distance")
        found["by_num_pairs"] = answers_by(runs, first, "num_pairs")
    return found


def seed_mean(runs, seeds, length):
    columns = [np.asarray(runs[seed].scores[length]["nll"], np.float64) for seed in seeds]
    return sum(columns) / len(columns)


def token_difference(runs, others, length):
    seeds = sorted(set(runs) & set(others))
    if not seeds:
        return None
    left, right = runs[seeds[0]].scores[length], others[seeds[0]].scores.get(length)
    if right is None:
        return None
    for column in ("document", "position"):
        if left[column].tolist() != right[column].tolist():
            return None
    return seed_mean(runs, seeds, length) - seed_mean(others, seeds, length)


def by_context(runs, others, length):
    losses, baseline = {}, {}
    for into, source in ((losses, runs), (baseline, others)):
        for seed, raw in source.items():
            if length in raw.scores:
                nll = raw.scores[length]["nll"].tolist()
                into[seed] = math.fsum(nll) / len(nll)
    common = [seed for seed in sorted(losses) if seed in baseline]
    difference = over_seeds([losses[s] - baseline[s] for s in common]) if common else None
    return {
        "context_length": length,
        "loss": pick(over_seeds(list(losses.values())), "mean", "low", "high", "std"),
        "difference": pick(difference, "mean", "low", "high", "num"),
        "accuracy": answers(runs, length),
    }


def buckets(runs, others, length, column):
    documents = next(iter(runs.values())).scores[length]["document"]
    loss = seed_mean(runs, sorted(runs), length)
    difference = token_difference(runs, others, length)
    found, start, end = [], 0, 1
    while start <= column.max():
        inside = np.array([start <= value < end for value in column.tolist()])
        if inside.any():
            entry = {"start": start, "end": end, "num_tokens": int(inside.sum())}
            for name, values in (("loss", loss), ("difference", difference)):
                entry[name] = None
                if values is not None:
                    interval = over_documents(values[inside], documents[inside])
                    entry[name] = pick(interval, "mean", "low", "high")
            found.append(entry)
        start, end = end, 2 * end
    return found


def answers(runs, length, column=None, value=None):
    right = num = 0
    for raw in runs.values():
        scores = raw.scores[length]
        if "correct" not in scores:
            return None
        for i, correct in enumerate(scores["correct"].tolist()):
            if column is None or scores[column][i] == value:
                right, num = right + bool(correct), num + 1
    return over_answers(right, num)


def answers_by(runs, length, column):
    if any(column not in raw.scores[length] for raw in runs.values()):
        return []
    values = {int(v) for raw in runs.values() for v in raw.scores[length][column]}
    return [{column: value, **answers(runs, length, column, value)} for value in sorted(values)]


def speedup(cell, baseline):
    """Compute at which the baseline's mean curve meets the cell's loss, over the cell's own."""
    own = next(iter(cell.runs.values())).cell["train_flops"]
    points = collections.defaultdict(list)
    for raw in baseline.runs.values():
        for step, flops, loss in raw.curve:
            if flops and loss is not None:
                points[step].append((flops, loss))
    curve = [
        tuple(sum(column) / len(column) for column in zip(*found, strict=True))
        for _, found in sorted(points.items())
        if len(found) == len(baseline.runs)
    ]
    target, slack = cell.mean_loss, 1e-12
    if not own or not curve or curve[0][1] < target - slack:
        return None
    for (c0, loss0), (c1, loss1) in zip([curve[0], *curve], curve, strict=False):
        if loss1 <= target + slack:
            if c0 == c1:
                return c1 / own
            return math.exp(np.interp(-target, [-loss0, -loss1], np.log([c0, c1]))) / own
    return None


# --- Comparing -----------------------------------------------------------------------------------


def differences(found, told, path="summary"):
    """Paths at which the two differ, with both values; a key that one lacks is a difference."""
    if isinstance(found, dict) and isinstance(told, dict):
        for key in [*found, *(key for key in told if key not in found)]:
            if key not in found or key not in told:
                yield f"{path}.{key}: only {'recomputed' if key in found else 'in results.json'}"
            else:
                yield from differences(found[key], told[key], f"{path}.{key}")
    elif isinstance(found, list) and isinstance(told, list) and len(found) == len(told):
        for index, (left, right) in enumerate(zip(found, told, strict=True)):
            yield from differences(left, right, f"{path}[{index}]")
    elif not same(found, told):
        yield f"{path}: recomputed {found!r}, results.json says {told!r}"


def check(folder):
    """All that is wrong, one line each."""
    folder = pathlib.Path(folder)
    summary, problems = recompute(folder)
    told = json.loads((folder / "results.json").read_text())["summary"]
    return [*problems, *differences(summary, told)]


def main(arguments):
    if len(arguments) != 1:
        print(__doc__.strip().splitlines()[2].strip(), file=sys.stderr)
        return 2
    wrong = check(arguments[0])
    for line in wrong:
        print(line)
    print(f"{len(wrong)} differences" if wrong else "every figure agrees with the raw rows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
