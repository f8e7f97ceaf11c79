"""The house stands: imports never run up a floor, files stay short, no layer kind leaks."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hybrid"

# Each floor is a folder of `hybrid/` or one file. A file imports from its own folder and from the
# floors before it; `docs/design.md` draws them.
FLOORS = (
    *("axes", "config", "process", "sharding", "sections"),
    *("ops", "data", "model", "costs", "pretrained", "origin", "experiment"),
    *("workdir", "plan", "loading", "inference", "generate", "evaluation", "training"),
    *("export", "ablate", ""),
)
# `FOLDER/config.py`, a section of keys, stands below all folders: it reads the schema only.
SECTIONS = re.compile(r"^(data|model|workdir|inference|evaluation|training)\.config$")
LONG_ALLOWED = {"ops"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(part for part in parts if part != "__init__")


def floor(module: str) -> int:
    name = "sections" if SECTIONS.match(module) else module.split(".")[0]
    return FLOORS.index(name)


def imported(path: pathlib.Path):
    """Modules of ours that a file imports, late imports included."""
    known = {module for _, module in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("hybrid."):
                parts = name.removeprefix("hybrid.").split(".")
                prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
                yield next((prefix for prefix in prefixes if prefix in known), "")


def test_every_folder_and_file_is_a_floor():
    entries = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert entries - {"__init__"} == set(FLOORS) - {"", "sections"}


@pytest.mark.parametrize(("path", "module"), [pair for pair in modules() if pair[1]])
def test_no_import_runs_up(path, module):
    assert not {name for name in imported(path) if floor(name) > floor(module)}


def test_imports_have_no_circles():
    # A package's __init__ names what its files define; circles are among the files.
    graph = {module: set(imported(path)) - {module} for path, module in modules()}

    def visit(module, trail):
        assert module not in trail, f"circle: {' -> '.join([*trail, module])}"
        for target in graph.get(module, ()):
            visit(target, [*trail, module])

    for module in graph:
        if module:
            visit(module, [])


def test_no_file_grows_past_400_lines():
    long = {
        module: len(path.read_text().splitlines())
        for path, module in modules()
        if module.split(".")[0] not in LONG_ALLOWED and len(path.read_text().splitlines()) > 400
    }
    assert not long


def test_layer_letters_are_compared_only_in_the_pattern_and_the_mixers():
    compares = re.compile(r"""letter\s*[!=]=|==\s*(LOCAL|GLOBAL)\b|["'][LG]["']\s*[!=]=""")
    found = [
        module
        for path, module in modules()
        if not module.startswith(("model.pattern", "model.mixers", "model.config"))
        and compares.search(path.read_text())
    ]
    assert not found
