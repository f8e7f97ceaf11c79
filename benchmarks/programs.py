"""The programs that a process compiled, for comparing two versions where clocks are too noisy.

XLA writes each program after its optimizations. What remains of one here is what is computed, in
which order and in which buffers' shapes: the names of instructions and the places in the source,
which any edit moves, are taken out.
"""

import collections
import re
import shutil
from pathlib import Path

PATTERN = "module_*.cpu_after_optimizations.txt"

# In the order in which they go: where an instruction comes from, the tables this refers to, names.
UNIMPORTANT = (
    (re.compile(r', metadata=\{(?:[^{}"]|"[^"]*"|\{[^{}]*\})*\}'), ""),
    (re.compile(r"(?m)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*"), ""),
    (re.compile(r"^HloModule [^,]+"), "HloModule"),
    (re.compile(r"%?[A-Za-z_][\w\-]*(\.[\w\-.]+)+|%[\w.\-]+"), "%"),
)


def flags(folder: Path) -> str:
    """The XLA_FLAGS with which a process leaves its programs in `folder`."""
    return f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*"


def take(folder: Path) -> collections.Counter[str]:
    """The programs in `folder`, each with how often it was compiled; `folder` is emptied.

    A program's computations are sorted, since their order follows their names.
    """
    found = collections.Counter(_plain(path.read_text()) for path in folder.glob(PATTERN))
    shutil.rmtree(folder)
    folder.mkdir()
    return found


def _plain(text: str) -> str:
    for pattern, replacement in UNIMPORTANT:
        text = pattern.sub(replacement, text)
    return "\n\n".join(sorted(part.strip() for part in re.split(r"\n\s*\n", text)))


def difference(old: collections.Counter[str], new: collections.Counter[str]) -> str:
    """ "equal", or how many programs of each side the other lacks."""
    if old == new:
        return f"{old.total()} equal"
    lost, added = (old - new).total(), (new - old).total()
    return f"{lost} of {old.total()} gone, {added} of {new.total()} new"
