"""Every sample with its reply and score, a JSON line each, beside the result; a run goes on by it.

The first line says what the samples were of; a run that is of another model, seed or text does not
go on with them. Lines are added batch by batch and are on the disk then. Of a line that was cut
off by a kill nothing is read.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.evaluation.retrieval.prompts import Group
from hybrid.process.files import log_of
from hybrid.process.remote import AnyPath

Key = tuple[str, int, float | None]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A sample that was replied to.

    Attributes:
      index: within its group.  score: 0 to 1.
      num_tokens: of the prompt.  floors: of `Prompt`.
    """

    index: int
    score: float
    reply: str
    references: tuple[str, ...]
    num_tokens: int
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)


Samples = dict[Key, dict[int, Scored]]  # of each group, by index


class SampleLog:
    """The scored samples of an evaluation, in memory and, given a path, in a file."""

    def __init__(self, path: AnyPath | None, identity: Mapping[str, Any]):
        """Reads what is there.

        Raises: ConfigError for a file that holds something else, or samples of another evaluation.
        """
        self._scored: Samples = {}
        self._log = None if path is None else log_of(path)
        # What the file is to be before lines are added: its first line, or all but a line cut off.
        self._whole = _line(identity)
        held = b"" if self._log is None else self._log.read()
        if not held:
            return
        _check(path, held.partition(b"\n")[0], identity)
        self._whole = held[: held.rfind(b"\n") + 1]
        try:
            self._scored = _samples(self._whole)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _something_else(path) from None

    def holds(self, group: Group, index: int) -> bool:
        """Whether a sample was scored already."""
        return index in self._scored.get(_key(group), {})

    def scored(self, group: Group) -> list[Scored]:
        """The samples of a group, by index."""
        held = self._scored.get(_key(group), {})
        return [held[index] for index in range(group.count)]

    def add(self, group: Group, scored: Sequence[Scored]) -> None:
        """Keeps what is new of a batch; on the disk when it returns."""
        new = [each for each in scored if not self.holds(group, each.index)]
        held = self._scored.setdefault(_key(group), {})
        held.update((each.index, each) for each in new)
        if self._log is None:
            return
        about = {"task": group.task, "length": group.length, "depth": group.depth}
        lines = (_line({**about, **dataclasses.asdict(each)}) for each in new)
        if self._whole:
            self._log.replace(self._whole)
            self._whole = b""
        self._log.append(b"".join(lines))
        self._log.sync()


def read(path: AnyPath) -> Samples:
    """The samples of a log, whatever they are of.

    Raises: ValueError, KeyError, TypeError or AttributeError for a line that is no sample.
    """
    return _samples(path.read_bytes())


def _samples(log: bytes) -> Samples:
    found: Samples = {}
    for line in log.splitlines()[1:]:
        values = json.loads(line)
        key = values.pop("task"), values.pop("length"), values.pop("depth")
        scored = Scored(**{**values, "references": tuple(values["references"])})
        found.setdefault(key, {})[scored.index] = scored
    return found


def path_beside(output: AnyPath) -> AnyPath:
    """The file of the samples of the result `output`."""
    return output.with_name(f"{pathlib.PurePath(output.name).stem}.samples.jsonl")


def _key(group: Group) -> Key:
    return group.task, group.length, group.depth


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode() + b"\n"


def _something_else(path: AnyPath | None) -> ConfigError:
    problem = "the file of samples beside it holds something else"
    return ConfigError("--output", problem, str(path), "another name, or remove that file")


def _check(path: AnyPath | None, head: bytes, identity: Mapping[str, Any]) -> None:
    """Raises: ConfigError by what differs in the first line of a log."""
    try:
        held = json.loads(head)
    except ValueError:
        held = None
    if not isinstance(held, dict) or held.keys() != identity.keys():
        raise _something_else(path)
    before, now = config_lib.flatten(held), config_lib.flatten(json.loads(_line(identity)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            has = before.get(name)
            problem = f"the samples beside it ({path}) are of another {name} ({has!r})"
            accepted = "another name, or remove that file"
            raise ConfigError("--output", problem, repr(now.get(name)), accepted)
