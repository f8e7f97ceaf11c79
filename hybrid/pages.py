"""Config pages: Python files with a `get_config()`, found, run and told apart from their mistakes.

A page runs as an ordinary module, registered while it runs, so it may hold dataclasses and
postponed annotations. What is wrong in one is told as Python would, with the page's line.
"""

import contextlib
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from hybrid.config import ConfigError


def load_page(spec: str) -> dict[str, Any]:
    """The values of a page: `PATH.py` or `PATH.py:ARG`, run as `get_config()` or `get_config(ARG)`.

    A relative path is looked up in the current directory, then among the packaged configs.
    Raises: ConfigError under `--config` for a missing, broken or refusing page.
    """
    path, argument = split_spec(spec)
    file = find_page(path)
    if file.suffix != ".py":
        raise ConfigError("--config", "must be a Python file", str(file))
    with _running(file) as module, _told(file, spec, argument):
        code = compile(file.read_bytes(), str(file), "exec")
        exec(code, module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not isinstance(get_config, types.FunctionType):
            raise ConfigError("--config", "the page defines no get_config()", path)
        page = get_config(argument) if argument else get_config()
    if not isinstance(page, ml_collections.ConfigDict | Mapping):
        raise ConfigError("--config", "get_config() must return a ConfigDict", spec)
    values = page.to_dict() if isinstance(page, ml_collections.ConfigDict) else dict(page)
    _check_names(values)
    return values


def _check_names(values: Any) -> None:
    if isinstance(values, Mapping):
        for name, value in values.items():
            if not isinstance(name, str):
                raise ConfigError("--config", "the page has a key that is no string", name)
            _check_names(value)


def split_spec(spec: str) -> tuple[str, str]:
    """Path and argument, which begins after `.py:`: the first at which a file ends.

    >>> split_spec("configs/tiny.py:local"), split_spec("runs:1/page.py")
    (('configs/tiny.py', 'local'), ('runs:1/page.py', ''))
    >>> split_spec("sweep.py:page.py:local")
    ('sweep.py', 'page.py:local')
    """
    ends = [found.end() - 1 for found in re.finditer(r"\.py:", spec)]
    if ends:
        end = next((end for end in ends if os.path.isfile(spec[:end])), ends[0])
        return spec[:end], spec[end + 1 :]
    if spec.endswith(".py"):
        return spec, ""
    path, _, argument = spec.partition(":")  # a packaged page without its ending
    return path, argument


def find_page(path: str) -> pathlib.Path:
    """The file of a config page.  Raises: ConfigError listing the packaged pages."""
    here = pathlib.Path(__file__).resolve().parent  # installed, or the package of a checkout
    packaged = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    name = path.removeprefix("configs/")
    for candidate in (pathlib.Path(path), packaged / name, packaged / f"{name}.py"):
        if candidate.is_file():
            return candidate
    pages = ", ".join(f"configs/{page.name}" for page in sorted(packaged.glob("[!_]*.py")))
    raise ConfigError("--config", "no such file", path or "nothing", f"packaged pages: {pages}")


# --- Running one -----------------------------------------------------------------------------


@contextlib.contextmanager
def _running(file: pathlib.Path) -> Iterator[types.ModuleType]:
    """An empty module for a page, registered inside: dataclasses look up the module they are of.

    Not imported by importlib, which would leave compiled files beside the page.
    """
    module = types.ModuleType(f"page_{file.stem}")
    module.__file__ = str(file)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        sys.modules.pop(module.__name__, None)
        if before is not None:  # a page that loads another of its name
            sys.modules[module.__name__] = before


@contextlib.contextmanager
def _told(file: pathlib.Path, spec: str, argument: str) -> Iterator[None]:
    """Turns what a page raises into one ConfigError, as itself and with the page's line."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if argument and isinstance(error, KeyError) and error.args == (argument,):
            raise ConfigError("--config", f"has no variant {error}", spec) from error
        line = _line_of(error, str(file))
        place = f" in line {line}" if line else ""
        raise ConfigError("--config", f"the page failed{place} ({_said(error)})", spec) from error


def _line_of(error: BaseException, file: str) -> int | None:
    """The last line of the page that led to an error; None where none of it had run."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in frames[::-1] if frame.filename == file), None)


def _said(error: BaseException) -> str:
    missing = "missing key " if isinstance(error, KeyError) else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {missing}{text[:200]}" if text else type(error).__name__
