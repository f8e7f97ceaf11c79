"""Results of sweeps that never ran: shaped as results.json, with effects planted in them.

`window()` is the common case (text and needles over five windows, three seeds); the others vary
it: `ratio`, `rope`, `mqar`, `two_axes`, `one_seed`, `failed`, `pending`, `no_baseline`.
All are made from fixed seeds, so equal calls give equal dicts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

MACHINE = "2 × cpu (Example processor, 2.4 GHz)"
WINDOWS = (8, 16, 32, 64, 256)
# Planted losses above the baseline: 8 and 16 worse, 32 and 64 within the noise of three seeds.
WINDOW_COSTS = {8: 0.080, 16: 0.030, 32: 0.0005, 64: -0.0004, 256: 0.0}
RATIOS = {"all-local": "L", "7:1": "LLLLLLLG", "5:1": "LLLLLG", "3:1": "LLLG", "1:1": "LG"}
DISTANCES = (4, 8, 16, 32, 64, 128, 240)
_T975 = {1: 12.706, 2: 4.303, 3: 3.182}
_CONTEXT = 256


def window(seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Text and needles over five windows; the needle's stack is all local, 4 layers."""
    axis = ["model.window_size", list(WINDOWS)]
    text = [_cell(f"window_size={w}", {axis[0]: w}, "LLLG", w, seeds) for w in WINDOWS]
    for cell, size in zip(text, WINDOWS, strict=True):
        _add_text(cell, WINDOW_COSTS[size], seeds, far=0.4 * WINDOW_COSTS[size])
    needle = [
        _cell(f"window_size={w}", {axis[0]: w, "data.source": "needle"}, "LLLL", w, seeds)
        for w in WINDOWS
    ]
    for cell in needle:
        _add_needles(cell, seeds)
    baseline = f"window_size={WINDOWS[-1]}"
    arms = [
        _arm("text", "text", text, baseline),
        _arm("needle", "needle", needle, baseline, chance=1 / 16),
    ]
    return _results("ablate_window", arms, [axis], {axis[0]: WINDOWS[-1]}, seeds)


def ratio() -> dict[str, Any]:
    """Local against global layers at 24 layers, written as cells; only all-local is worse."""
    seeds, cells = (0, 1, 2), []
    for index, (name, period) in enumerate({**RATIOS, "all-global": "G"}.items()):
        letters = (period * 24)[:24]
        cell = _cell(name, {"model.pattern": period}, letters, 32, seeds)
        _add_text(cell, 0.05 if index == 0 else 0.0006 * (5 - index), seeds, far=0.02)
        cell["changed"] = {"training.num_steps": [300, 300 - 10 * index]} if index else {}
        cells.append(cell)
    arms = [_arm("", "text", cells, "all-global")]
    about = _results("ablate_ratio", arms, [], {"model.pattern": "G"}, seeds)
    return {**about, "match": "flops"}


def rope() -> dict[str, Any]:
    """Rotary fractions at the training length and at twice that, where more turning hurts."""
    seeds, key, cells = (0, 1, 2), "model.global_rope_fraction", []
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        cell = _cell(f"global_rope_fraction={fraction}", {key: fraction}, "LLLG", 32, seeds)
        _add_text(cell, 0.02 * (fraction == 0), seeds)
        _add_contexts(cell, {_CONTEXT: 0.0, 2 * _CONTEXT: 0.3 * fraction**2}, seeds)
        cells.append(cell)
    axis = [key, [0, 0.25, 0.5, 0.75, 1]]
    arms = [_arm("", "text", cells, "global_rope_fraction=1")]
    return _results("ablate_rope", arms, [axis], {key: 1}, seeds)


def mqar() -> dict[str, Any]:
    """Recall by number of pairs; the all-local stack forgets as pairs grow."""
    seeds, cells = (0, 1, 2), []
    for name, period, fall in (("all-local", "L", 0.2), ("3:1", "LLLG", 0.004), ("1:1", "LG", 0)):
        cell = _cell(name, {"model.pattern": period}, (period * 4)[:4], 32, seeds)
        shares = {pairs: 0.995 - fall * math.log2(pairs / 2) for pairs in (4, 8, 16)}
        cell["loss"] = _seeds_interval(cell, 0.05 + 2 * fall, seeds)
        cell["by_num_pairs"] = [
            {"num_pairs": pairs, **_wilson(share, 1000 * len(seeds))}
            for pairs, share in shares.items()
        ]
        cell["accuracy"] = _wilson(sum(shares.values()) / 3, 3000 * len(seeds))
        alone = {seed: cell["accuracy"]["mean"] + 0.2 * fall * (seed - 1) for seed in seeds}
        cell["accuracy_by_seed"] = [
            {"seed": seed, **_wilson(share, 3000)} for seed, share in alone.items()
        ]
        cells.append(cell)
    arms = [_arm("", "mqar", cells, "1:1")]
    return _results("ablate_mqar", arms, [], {"model.pattern": "LG"}, seeds)


def two_axes() -> dict[str, Any]:
    """Needles over windows and depths, all local: the reach grows with either."""
    seeds, cells = (0, 1, 2), []
    axes = [["model.window_size", [8, 16, 32]], ["model.num_layers", [2, 4, 6]]]
    for size in axes[0][1]:
        for depth in axes[1][1]:
            overrides = {axes[0][0]: size, axes[1][0]: depth}
            name = f"window_size={size},num_layers={depth}"
            cell = _cell(name, overrides, "L" * depth, size, seeds)
            _add_needles(cell, seeds)
            cells.append(cell)
    arms = [_arm("", "needle", cells, None, chance=1 / 16)]
    return _results("ablate_reach", arms, axes, None, seeds)


def one_seed() -> dict[str, Any]:
    """The window sweep with a single seed: means without intervals over seeds."""
    return window(seeds=(0,))


def failed() -> dict[str, Any]:
    """The window sweep where one run of the text arm failed with an error to be escaped."""
    results = window()
    results["cells"][0] |= {
        "status": "failed",
        "error": "XlaRuntimeError: out of memory <b>4 & 5</b>",
        "metrics": None,
    }
    results["summary"]["arms"][0]["cells"][0]["num_seeds"] = 2
    return results


def pending() -> dict[str, Any]:
    """A sweep of which nothing is finished yet."""
    results = window()
    for run in results["cells"]:
        run |= {"status": "pending", "metrics": None, "curve": [], "tokens_per_second": None}
    results["summary"] = {"arms": []}
    return results


def no_baseline() -> dict[str, Any]:
    """The window sweep without a baseline: losses, no differences."""
    results = window()
    results["baseline"] = None
    for arm in results["summary"]["arms"]:
        arm["baseline"] = None
        for cell in arm["cells"]:
            cell |= {"is_baseline": False, "difference": None, "difference_documents": None}
            cell |= {"effective_speedup": None}
            for bucket in [*cell["by_position"], *cell["repeats"], *cell["by_context"]]:
                bucket["difference"] = None
    return results


# --- Cells -----------------------------------------------------------------------------------


def _cell(name: str, overrides: dict, letters: str, window_size: int, seeds) -> dict[str, Any]:
    local = letters.count("L")
    keys = local * min(window_size, _CONTEXT) + (len(letters) - local) * _CONTEXT
    flops = 620_000 + 4 * 64 * keys
    return {
        "name": name,
        "overrides": overrides,
        "num_seeds": len(seeds),
        "learning_rate": 0.01,
        "learning_rates": [{"learning_rate": 0.01, "loss": None, "num_seeds": len(seeds)}],
        "difference": None,
        "difference_documents": None,
        "by_context": [],
        "by_position": [],
        "repeats": [],
        "accuracy": None,
        "accuracy_by_seed": [],
        "by_distance": [],
        "by_num_pairs": [],
        "num_params": 310_000,
        "flops_per_token": flops,
        "train_flops": 3 * flops * 300 * 16 * _CONTEXT,
        "kv_cache_bytes": 256 * keys,
        "cache_context": _CONTEXT,
        "tokens_per_second": round(2.4e10 / flops),
        "reach": len(letters) * (window_size - 1) + 1 if local == len(letters) else None,
        "letters": letters,
        "changed": {},
        "effective_speedup": None,
    }


def _add_text(cell: dict, extra: float, seeds, far: float = 0.0) -> None:
    base = 1.92
    cell["loss"] = _seeds_interval(cell, base + extra, seeds, spread=0.006)
    cell["difference"] = _seeds_difference(cell, extra, seeds, spread=0.0012)
    cell["difference_documents"] = {**_around(extra, 0.003), "num_documents": 120}
    cell["effective_speedup"] = 0.9 if extra > 0.02 else 1.04
    cell["by_position"] = [
        _bucket(start, end, 2.6 - 0.09 * index + extra, far * max(0, index - 3) / 2, 0.012)
        for index, (start, end) in enumerate(_powers(_CONTEXT, first=0))
    ]
    cell["repeats"] = [
        _bucket(start, end, 0.9 + 0.05 * index + extra, 2 * far * max(0, index - 3), 0.02)
        for index, (start, end) in enumerate(_powers(_CONTEXT, first=1))
    ]


def _add_contexts(cell: dict, extras: Mapping[int, float], seeds) -> None:
    for length, extra in extras.items():
        loss = _seeds_interval(cell, cell["loss"]["mean"] + extra - 0.01, seeds, spread=0.006)
        difference = _seeds_difference(cell, extra - 0.3 * (extra > 0), seeds, spread=0.002)
        entry = {"context_length": length, "loss": loss, "difference": difference}
        cell["by_context"].append({**entry, "accuracy": None})


def _add_needles(cell: dict, seeds) -> None:
    """Sure within a window, falling to chance at the stack's reach."""
    reach, depth = cell["reach"], len(cell["letters"])
    size = (reach - 1) // depth + 1
    num = 1000 * len(seeds)
    shares = {distance: _needle_share(distance, size, reach) for distance in DISTANCES}
    cell["by_distance"] = [{"distance": d, **_wilson(s, num)} for d, s in shares.items()]
    mean = sum(shares.values()) / len(shares)
    cell["accuracy"] = _wilson(mean, num * len(shares))
    each = {**_around(mean, 0.01), "num": num}
    cell["accuracy_by_seed"] = [{"seed": seed, **each} for seed in seeds]
    cell["loss"] = _seeds_interval(cell, 2.8 * (1 - mean) + 0.02, seeds)


def _needle_share(distance: int, size: int, reach: int) -> float:
    if distance < size:
        return 0.988
    if distance >= reach:
        return 1 / 16
    return 0.988 - 0.8 * math.log(distance / (size - 1)) / math.log(reach / (size - 1))


# --- Intervals -------------------------------------------------------------------------------


def _seeds_interval(cell: dict, mean: float, seeds, spread: float = 0.004) -> dict[str, Any]:
    random = np.random.default_rng(sum(map(ord, cell["name"])))
    noise = random.normal(size=len(seeds))
    noise -= noise.mean()
    if len(seeds) == 1:
        return {"mean": mean, "low": None, "high": None, "std": None}
    std = spread * float(noise.std(ddof=1))
    half = _T975[len(seeds) - 1] * std / math.sqrt(len(seeds))
    return {**_around(mean, half), "std": std}


def _seeds_difference(cell: dict, mean: float, seeds, spread: float) -> dict[str, Any]:
    interval = _seeds_interval(cell, mean, seeds, spread)
    return {**{end: interval[end] for end in ("mean", "low", "high")}, "num": len(seeds)}


def _around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _wilson(share: float, num: int) -> dict[str, Any]:
    z, share = 1.96, round(share * num) / num
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return {"mean": share, "low": centre - half, "high": centre + half, "num": num}


def _bucket(start: int, end: int, loss: float, extra: float, half: float) -> dict[str, Any]:
    loss, difference = _around(loss + extra, half), _around(extra, half / 3)
    return {"start": start, "end": end, "loss": loss, "difference": difference, "num_tokens": 900}


def _powers(stop: int, first: int) -> list[tuple[int, int]]:
    ends = [2**power for power in range(int(math.log2(stop)) + 1)]
    return list(zip(([0] if first == 0 else []) + ends[:-1], ends[first:], strict=True))


# --- Sweeps ----------------------------------------------------------------------------------


def _arm(name, task, cells, baseline, chance=None) -> dict[str, Any]:
    for cell in cells:
        cell |= {"is_baseline": cell["name"] == baseline, "partner": baseline}
        cell["learning_rates"][0]["loss"] = cell["loss"]["mean"]
        cheaper = [
            other
            for other in cells
            if other["kv_cache_bytes"] < cell["kv_cache_bytes"]
            and other["loss"]["mean"] < cell["loss"]["mean"]
        ]
        cell["on_front"] = not cheaper
        if cell["is_baseline"]:
            cell |= {"difference": None, "difference_documents": None}
            for bucket in [*cell["by_position"], *cell["repeats"], *cell["by_context"]]:
                bucket["difference"] = None
    lengths = [entry["context_length"] for entry in cells[0]["by_context"]] or [_CONTEXT]
    arm = {"arm": name, "task": task, "baseline": baseline, "context_lengths": lengths}
    return {**arm, "chance": chance, "cells": cells}


def _runs(arm: dict, seeds: Sequence[int]) -> list[dict[str, Any]]:
    runs = []
    for cell in arm["cells"]:
        for seed in seeds:
            copied = ("name", "overrides", "learning_rate", "num_params", "flops_per_token")
            copied += ("train_flops", "kv_cache_bytes", "cache_context", "reach", "changed")
            copied += ("letters", "tokens_per_second")
            loss = cell["loss"]["mean"] + 0.001 * seed
            run = {key: cell[key] for key in copied}
            run |= {"arm": arm["arm"], "seed": seed, "status": "finished", "error": None}
            run |= {"metrics": {"step": 300, "eval/loss": loss}, "task": arm["task"]}
            run |= {"workdir": f"runs/{arm['arm'] or 'all'}-{cell['name']}-{seed}"}
            run |= {"num_steps": 300, "tokens": 300 * 16 * _CONTEXT}
            run["curve"] = _curve(cell["train_flops"], loss)
            runs.append(run)
    return runs


def _curve(flops: float, loss: float) -> list[list[float]]:
    return [[100 * k, flops * k / 3, loss + 0.6 * (3 - k)] for k in (1, 2, 3)]


def _results(name, arms, axes, baseline, seeds) -> dict[str, Any]:
    return {
        "name": name,
        "match": "tokens",
        "baseline": baseline,
        "axes": axes,
        "seeds": list(seeds),
        "learning_rates": [],
        "machine": MACHINE,
        "cells": [run for arm in arms for run in _runs(arm, seeds)],
        "summary": {"arms": arms},
    }


SWEEPS: dict[str, Callable[[], dict[str, Any]]] = {
    each.__name__: each
    for each in (window, ratio, rope, mqar, two_axes, one_seed, failed, pending, no_baseline)
}
