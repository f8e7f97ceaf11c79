"""Writes the pages that are made from code: `python docs/generate.py` (or `make docs`).

docs/configs.md lists every config key from the dataclasses; the tables of docs/ablation.md come
from the results of real sweeps, docs/ablation/NAME.json. A test fails when one is out of date.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from hybrid import config as config_lib
from hybrid.ablate import notation
from hybrid.ablate.config import SweepConfig
from hybrid.experiment import Experiment

DOCS = pathlib.Path(__file__).resolve().parent

HEADER = """# Config keys

Made by `make docs` from the dataclasses; each section's class stands beside its reader.
Set a key in a page (`config.model.window_size = 64`) or on the command line
(`--config.model.window_size=64`). Lists have commas: `--config.eval.context_length=128,512`.
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


def _loss_and_difference(entry: Mapping[str, Any]) -> str:
    loss = notation.fixed(entry["loss"]["mean"])
    difference = entry["difference"]
    return loss if difference is None else f"{loss}, {_interval(difference, notation.signed)}"


def _interval(interval: Mapping[str, Any] | None, shown) -> str:
    if interval is None:
        return notation.DASH
    if not notation.has_interval(interval):
        return shown(interval["mean"])
    return f"{shown(interval['mean'])} ({shown(interval['low'])} to {shown(interval['high'])})"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    (DOCS / "configs.md").write_text(config_page())
    (DOCS / "ablation.md").write_text(ablation_page())
