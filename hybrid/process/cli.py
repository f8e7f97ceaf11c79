"""What all commands share: flags, `--config.KEY=VALUE`, `--help`, errors and exit statuses.

absl parses the flags into a `FlagValues` of the command's own; the rest is ours, since absl by
itself exits 1 on a wrong flag and has no config keys.
"""

import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.process import signals
from hybrid.process.host import keep_freed_memory, write_any_text


class AnyPath:
    """The type of a flag that names a file or folder, here or in an object store."""


_DEFINE: dict[type, Callable] = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    pathlib.Path: flags.DEFINE_string,  # opened by `_reachable`
    AnyPath: flags.DEFINE_string,
}
OK, FAILED, WRONG_INPUT, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, 143  # tracebacks: 1, by Python


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line: its name and purpose, its flags, and the config whose keys it takes.

    Attributes:
      name: as typed, `python train.py`.
      doc: what it does, for `--help`.
      flags: meaning and default of each flag by name; the default's type is the flag's, and a
        flag without a default has its type in that place, `pathlib.Path` for what names a file and
        `AnyPath` for what may also lie in an object store.
      config_class: the dataclass behind `--config.KEY`.
      run: does the work, given the parsed `Arguments`; may return an exit status.
    """

    name: str
    doc: str
    flags: Mapping[str, tuple[str, Any]]
    config_class: type
    run: Callable[["Arguments"], int | None]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A parsed command line: `flags.NAME`, and the config overrides as text."""

    flags: flags.FlagValues
    overrides: dict[str, str]

    def require(self, name: str) -> str:
        """The value of a flag that must be given.  Raises: ConfigError."""
        value = self.flags[name].value
        if not value:
            raise ConfigError(f"--{name}", "is required", accepted=self.flags[name].help)
        return value


def main(command: Command | str, argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
      command: or the module that holds it as COMMAND, which is imported after signals are caught:
        that loads jax, which takes seconds.
    """
    argv = sys.argv[1:] if argv is None else argv
    with signals.caught():
        try:
            if isinstance(command, str):
                return _run(importlib.import_module(command).COMMAND, argv)
            return _run(command, argv)
        except BaseException as error:
            status, line = ending(error)
            if status == FAILED:
                raise
            say(line)
            return status


def ending(error: BaseException) -> tuple[int, str]:
    """The status that a command ends with after an exception, and the line that tells why."""
    error = signals.stop_behind(error) or error
    if isinstance(error, ConfigError):
        return WRONG_INPUT, f"error: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # by a flag or a key
        return WRONG_INPUT, f"error: path: is too long, got {error.filename!s:.40}..."
    if isinstance(error, signals.Ended):
        return error.status, ""
    if isinstance(error, signals.Preempted):
        return PREEMPTED, f"stopped: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted{': ' if str(error) else ''}{error}"
    return FAILED, f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.300}"


def say(line: str) -> None:
    """Writes a line that is not empty to standard error."""
    with contextlib.suppress(OSError):  # after a SIGHUP the terminal is gone
        print(line, end="\n" if line else "", file=sys.stderr)


@contextlib.contextmanager
def errors_by_flag(flag_of: Mapping[str, str]) -> Iterator[None]:
    """Puts the flag in place of the key that the Python interface names in an error."""
    try:
        yield
    except ConfigError as error:
        key = flag_of.get(error.key, error.key)
        raise error.under(key) from None


def _run(command: Command, argv: Sequence[str]) -> int:
    write_any_text()
    if "--help" in argv or "-h" in argv:
        print(help_text(command))
        return OK
    arguments = parse(command, argv)
    log = logging.getLogger("hybrid")  # plain lines, whatever others have set up
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.propagate = False
    log.setLevel(logging.INFO)
    keep_freed_memory()
    return command.run(arguments) or OK


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Splits config overrides from flags and parses both.  Raises: ConfigError."""
    words, overrides = _split(argv)
    values = _flag_values(command)
    try:  # unknown flags come back, without the search for a similar name that recurses by letter
        rest = values([command.name, *words], known_only=True)[1:]
    except flags.Error as error:
        raise _flag_error(str(error)) from None
    if rest and rest[0].startswith("-") and rest[0].strip("-"):
        known = ", ".join(f"--{name}" for name in sorted(values))
        name = rest[0].lstrip("-").partition("=")[0]
        raise ConfigError(f"--{name}", "unknown flag", accepted=known)
    if rest:
        raise ConfigError("arguments", "takes only --flags", " ".join(rest))
    for name, (_, kind) in command.flags.items():
        value = values[name].value
        if kind in (pathlib.Path, AnyPath) and value:
            values[name].value = _reachable(f"--{name}", value, remote=kind is AnyPath)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise ConfigError(f"--{name}", "must fit in 64 bits", value)
    return Arguments(values, overrides)


def _reachable(name: str, text: str, remote: bool) -> str:
    """The path that a flag names, `~` opened.  Raises: ConfigError where no file could be."""
    path = config_lib.opened_path(name, text, remote=remote)
    if remote and path.startswith("gs://"):
        from hybrid.process.files import path_of  # its imports take a while

        return str(path_of(name, path))
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # whether it must be there is the command's business
    except OSError as error:
        raise ConfigError(name, f"can't be reached ({error.strerror})", text) from None
    return path


def _flag_values(command: Command) -> flags.FlagValues:
    values = flags.FlagValues()
    for name, (doc, default) in command.flags.items():
        kind, default = (default, None) if isinstance(default, type) else (type(default), default)
        _DEFINE[kind](name, default, doc, flag_values=values)
    return values


def _flag_error(message: str) -> ConfigError:
    """absl's complaint about a flag, by the flag's name."""
    illegal = re.match(r"flag --(\w+)=(.*?): (.*)", message, re.DOTALL)
    if illegal:
        name, value, _ = illegal.groups()
        return ConfigError(f"--{name}", "has a value of the wrong type", value)
    missing = re.search(r"--(\w+)", message)
    return ConfigError(f"--{missing[1]}" if missing else "flags", "has no value")


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    words, overrides = [], {}
    remaining = iter(argv)
    for word in remaining:
        if not word.startswith(("--config.", "-config.")):
            words.append(word)
            continue
        name, equals, text = word.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            text = next(remaining, "")
            if not text:
                raise ConfigError(name, "has no value", accepted=f"--config.{name}=VALUE")
        overrides[name] = text
    return words, overrides


def help_text(command: Command) -> str:
    """Usage, flags and every config key with its default and meaning."""
    values = _flag_values(command)
    lines = [f"usage: {command.name} --FLAG=VALUE ... [--config.KEY=VALUE ...]", ""]
    lines += [textwrap.dedent(command.doc).strip(), "", "flags:"]
    lines += [f"  --{name:<22} {values[name].help}" for name in values]
    lines += ["", "config keys (--config.KEY=VALUE; the page given by --config sets them first):"]
    for info in config_lib.walk(command.config_class):
        shown = repr(info.default) if info.default not in ("", ()) else "(empty)"
        lines.append(f"  {info.name:<32} {info.doc} [default: {shown}]")
    return "\n".join(lines)
