"""Writes the pages that are made from code: `python docs/generate.py` (or `make docs`).

docs/configs.md lists every config key from the dataclasses; the tables of docs/ablation.md come
from the results of real sweeps, docs/ablation/NAME.json, those of docs/memory.md from
`hybrid.plan`. A test fails when one is out of date.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import hybrid
from hybrid import config as config_lib
from hybrid import experiment
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.report import notation
from hybrid.data.config import MixtureSource
from hybrid.experiment import Experiment
from hybrid.inference.config import UNIFIED_CACHES

DOCS = pathlib.Path(__file__).resolve().parent

HEADER = """# Config keys

Made by `make docs` from the dataclasses; each section's class stands beside its reader.
Set a key in a page (`config.model.window_size = 64`) or on the command line
(`--config.model.window_size=64`). Lists have commas: `--config.eval.context_length=128,512`;
quotes protect an item: `--config.data.paths="'a,b.txt','c.txt'"`.
"""


def config_page() -> str:
    """docs/configs.md: a table a section of a run, then the keys of a sweep."""
    lines, section = [HEADER], None
    for info in config_lib.walk(Experiment):
        head = info.name.rpartition(".")[0]
        if head != section:
            section = head
            lines += table_head(f"`{head}.`" if head else "Top level")
        lines.append(row(info))
    lines += table_head("An entry of `data.mixture`, a dict of these")
    lines += map(row, config_lib.walk(MixtureSource))
    lines += table_head("A sweep (`python -m hybrid.ablate`)")
    lines.append("| `base` | | a run's config, all of the above: `base.model.window_size`, … |")
    own = [info for info in config_lib.walk(SweepConfig) if not info.name.startswith("base.")]
    lines += map(row, own)
    return "\n".join(lines) + "\n"


def table_head(title: str) -> list[str]:
    """A heading and the top of its table."""
    return ["", f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]


def row(info: config_lib.KeyInfo) -> str:
    """A key's line."""
    default = "(empty)" if info.default in ("", (), None) else f"`{info.default}`"
    return f"| `{info.name.rpartition('.')[2]}` | {default} | {info.doc} |"


# --- docs/ablation.md ------------------------------------------------------------------------

# <!-- NAME ARM TABLE --> the table <!-- end -->; ARM is "-" where a sweep has one arm.
_TABLE = re.compile(r"(<!-- (\w+) (\S+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def ablation_page() -> str:
    """docs/ablation.md with its tables made anew from the results beside it."""

    def fill(match: re.Match) -> str:
        opening, name, arm, table, end = match.groups()
        results = json.loads((DOCS / "ablation" / f"{name}.json").read_text())
        arms = {entry["arm"] or "-": entry for entry in results["summary"]["arms"]}
        return f"{opening}\n{TABLES[table](arms[arm])}\n\n{end}"

    return _TABLE.sub(fill, (DOCS / "ablation.md").read_text())


def loss_table(arm: Mapping[str, Any]) -> str:
    """Losses, paired differences over seeds and over documents, costs."""
    head = "cell | loss | difference, seeds | difference, documents | KV cache | tokens/s | seeds"
    rows = [
        [
            cell["name"] + (" (baseline)" if cell["is_baseline"] else ""),
            notation.fixed(cell["loss"]["mean"]),
            _interval(cell["difference"], notation.signed),
            _interval(cell["difference_documents"], notation.signed),
            notation.binary(cell["kv_cache_bytes"]),
            notation.decimal(cell["tokens_per_second"]),
            str(cell["num_seeds"]),
        ]
        for cell in arm["cells"]
    ]
    return _markdown(head.split(" | "), rows)


def distance_table(arm: Mapping[str, Any]) -> str:
    """Accuracy by distance, with Wilson intervals."""
    distances = [entry["distance"] for entry in arm["cells"][0]["by_distance"]]
    rows = [
        [cell["name"], notation.plain(cell["reach"] or "all")]
        + [_interval(entry, notation.percent) for entry in cell["by_distance"]]
        for cell in arm["cells"]
    ]
    return _markdown(["cell", "reach", *map(str, distances)], rows)


def accuracy_table(arm: Mapping[str, Any]) -> str:
    """Accuracy over everything asked, and of each seed alone."""
    rows = [
        [
            cell["name"],
            _interval(cell["accuracy"], notation.percent),
            " · ".join(notation.percent(each["mean"]) for each in cell["accuracy_by_seed"]),
            f"{cell['learning_rate']:g}",
        ]
        for cell in arm["cells"]
    ]
    return _markdown(["cell", "accuracy", "by seed", "learning rate"], rows)


def context_table(arm: Mapping[str, Any]) -> str:
    """Loss and paired difference over seeds at each context length."""
    rows = []
    for cell in arm["cells"]:
        name = cell["name"] + (" (baseline)" if cell["is_baseline"] else "")
        lengths = cell["by_context"]
        rows.append([name, *(_loss_and_difference(entry) for entry in lengths)])
    lengths = [f"{length} tokens" for length in arm["context_lengths"]]
    return _markdown(["cell", *lengths], rows)


TABLES = {
    "losses": loss_table,
    "distances": distance_table,
    "accuracy": accuracy_table,
    "contexts": context_table,
}


# --- docs/memory.md --------------------------------------------------------------------------

PRESETS = {"e2b": "E2B", "e4b": "E4B", "12b": "12B", "26b_a4b": "26B-A4B", "31b": "31B"}
CONTEXTS = [4096 << doubling for doubling in range(7)]
_FIGURES = re.compile(r"(<!-- memory (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def memory_page() -> str:
    """docs/memory.md with its tables made anew."""

    def fill(match: re.Match) -> str:
        opening, table, end = match.groups()
        return f"{opening}\n{MEMORY_TABLES[table]()}\n\n{end}"

    return _FIGURES.sub(fill, (DOCS / "memory.md").read_text())


def presets_table() -> str:
    """Cache bytes of each preset and context, and what the layers would keep all-global."""
    rows = []
    for preset, name in PRESETS.items():
        plans = [hybrid.plan(f"configs/gemma4.py:{preset}", context=c) for c in CONTEXTS]
        last = plans[-1]
        rows.append(
            [
                name,
                *(notation.binary(plan.kv_cache_bytes["total"]) for plan in plans),
                notation.binary(last.kv_cache_bytes_all_global),
                notation.times(last.kv_cache_ratio),
            ]
        )
    lengths = [f"{context // 1024}K" for context in CONTEXTS]
    return _markdown(["preset", *lengths, "all-global, 256K", "ratio at 256K"], rows)


def forms_table() -> str:
    """31B at 256K by what is kept of unified layers, and in which dtype."""
    rows = []
    for layout in UNIFIED_CACHES:
        sizes = []
        for dtype in ("bfloat16", "int8"):
            keys = {"inference.unified_cache": layout, "inference.cache_dtype": dtype}
            page = experiment.load("configs/gemma4.py:31b", keys)
            sizes.append(hybrid.plan(experiment.to_dict(page), context=CONTEXTS[-1]).kv_cache_bytes)
        rows.append(
            [
                f"`{layout}`",
                *(notation.binary(size[kind]) for size in sizes for kind in ("global", "total")),
            ]
        )
    head = ["`inference.unified_cache`", "bfloat16, global layers", "total", "int8, global layers"]
    return _markdown([*head, "total"], rows)


def ratios_table() -> str:
    """60 layers of equal heads at 256K under several patterns and windows."""
    rows = []
    for pattern in ("LG", "LLLLLG"):
        for window in (512, 1024):
            model = {"pattern": pattern, "num_layers": 60, "window_size": window}
            plan = hybrid.plan({"model": model | {"unified_kv": False}}, context=CONTEXTS[-1])
            globals_ = 60 // len(pattern)
            rows.append(
                [f"{pattern}, {globals_} of 60 global", str(window), f"{plan.kv_cache_ratio:.2f} ×"]
            )
    return _markdown(["pattern", "window", "all-global over hybrid"], rows)


MEMORY_TABLES = {"presets": presets_table, "forms": forms_table, "ratios": ratios_table}


def _loss_and_difference(entry: Mapping[str, Any]) -> str:
    loss = notation.fixed(entry["loss"]["mean"])
    difference = entry["difference"]
    return loss if difference is None else f"{loss}, {_interval(difference, notation.signed)}"


def _interval(interval: Mapping[str, Any] | None, shown) -> str:
    if interval is None:
        return notation.DASH
    if interval["low"] is None:
        return shown(interval["mean"])
    return f"{shown(interval['mean'])} ({shown(interval['low'])} to {shown(interval['high'])})"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    (DOCS / "configs.md").write_text(config_page())
    (DOCS / "ablation.md").write_text(ablation_page())
    (DOCS / "memory.md").write_text(memory_page())
