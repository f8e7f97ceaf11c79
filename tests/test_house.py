"""The house stands: imports form floors without circles, files stay short, no layer kind leaks."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hybrid"

# Lower floors never import higher ones. A package stands for all its files unless one is named.
FLOORS = {
    "axes": 0,
    "config": 0,
    "model_config": 0,
    "inference_config": 0,
    "pattern": 0,
    "host": 0,
    "lora": 1,
    "files": 0,
    "ops": 1,
    "sharding": 1,
    "modules": 2,
    "mixers": 3,
    "state": 4,
    "blocks": 4,
    "data.batch": 4,
    "stack": 5,
    "model": 6,
    "accounting": 6,
    "data": 7,
    "inference": 7,
    "conversion": 7,
    "pretrained": 7,
    "origin": 8,
    "evaluation.config": 7,
    "evaluation": 8,
    "training": 8,
    "experiment": 9,
    "cli": 9,
    "training.prepare": 10,
    "training.provenance": 10,
    "training.loop": 10,
    "plan": 10,
    "initial": 10,
    "evaluation.target": 11,
    "evaluation.command": 11,
    "api": 11,
    "export": 12,
    "generate": 12,
    "ablate": 12,
    "evaluation.__main__": 11,
    "training.__main__": 11,
}
LONG_ALLOWED = {"ops"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(part for part in parts if part != "__init__")


def floor(module: str) -> int | None:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        found = FLOORS.get(".".join(parts[:end]))
        if found is not None:
            return found
    return None


def imported(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("hybrid.") for name in names if name.startswith("hybrid."))


@pytest.mark.parametrize(("path", "module"), [pair for pair in modules() if pair[1]])
def test_a_module_imports_only_from_its_floor_or_below(path, module):
    own = floor(module)
    assert own is not None, f"{module} has no floor"
    above = {name for name in imported(path) if (floor(name) or 0) > own}
    assert not above


def test_imports_have_no_circles():
    known = {module for _, module in modules()}
    graph = {}
    for path, module in modules():
        targets = set()
        for name in imported(path):
            parts = name.split(".")
            prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            targets.add(next((prefix for prefix in prefixes if prefix in known), module))
        graph[module] = targets - {module}

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
        if not module.startswith(("pattern", "mixers", "model_config"))
        and compares.search(path.read_text())
    ]
    assert not found
