"""Writes the pages that are made from code: `python docs/generate.py` (or `make docs`).

docs/configs.md lists every config key from the dataclasses; a test fails when it is out of date.
"""

import pathlib

from hybrid import config as config_lib
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


if __name__ == "__main__":
    (DOCS / "configs.md").write_text(config_page())
