"""Writes the pages that are made from code: `python docs/generate.py` (or `make docs`).

docs/configs.md lists every config key from the dataclasses; a test fails when it is out of date.
"""

import pathlib

from hybrid import config as config_lib
from hybrid.experiment import Experiment

DOCS = pathlib.Path(__file__).resolve().parent

HEADER = """# Config keys

Made by `make docs` from the dataclasses; each section's class stands beside its reader.
Set a key in a page (`config.model.window_size = 64`) or on the command line
(`--config.model.window_size=64`). Lists have commas: `--config.eval.context_length=128,512`.
"""


def config_page() -> str:
    """docs/configs.md: a table a section."""
    lines, section = [HEADER], None
    for info in config_lib.walk(Experiment):
        head, _, leaf = info.name.rpartition(".")
        if head != section:
            section = head
            title = f"`{head}.`" if head else "Top level"
            lines += ["", f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]
        default = "(empty)" if info.default in ("", ()) else f"`{info.default}`"
        lines.append(f"| `{leaf}` | {default} | {info.doc} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (DOCS / "configs.md").write_text(config_page())
