"""The scripts of docs/, which are no package, as modules."""

import importlib.util
import pathlib
import types

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def load(name: str) -> types.ModuleType:
    """docs/NAME.py, run as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
