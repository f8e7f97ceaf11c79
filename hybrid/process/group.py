"""What the processes of a run do together: one decides, all meet, one a host goes first.

`current()` is the group that this process belongs to; outside `distributed.started` it is alone in
it, and then nothing here costs anything. Every process must come to each call in the same order.

Decisions travel as text through the coordinator's key-value store and not through the devices: the
main thread then waits in Python, where signals are met, and needs no mesh. Whoever waits for a
process that has died is ended by `members.py`, so nothing here has a time limit of its own.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hybrid.config import ConfigError
from hybrid.process import signals
from hybrid.process.members import Members, Store
from hybrid.process.remote import AnyPath, RemotePath

_FOLDER = "hybrid/group/"
_SECONDS_FOR_A_FILE = 10.0  # until what one host has written shows on another
T = TypeVar("T")


class Group:
    """The processes of a run.

    Attributes:
      index, count: this process's number, and how many there are.
    """

    def __init__(self, store: Store | None = None, members: Members | None = None):
        self._store, self.members = store, members
        self.index, self.count = (members.index, members.count) if members else (0, 1)
        self._calls = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.index == 0

    def from_first(self, decide: Callable[[], Any]) -> Any:
        """What `decide()`, called on process 0 alone, returns there (as JSON holds it).

        An exception of it is raised there; the others are then ended by their watchers.
        """
        if self.count == 1:
            return decide()
        values = self._told(json.dumps(decide()) if self.is_first else None, 1)
        return json.loads(values[0])

    def meet(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            self._told("", self.count)

    def first_on_host(self, make: Callable[[], T]) -> T:
        """`make()` of every process, those of a host after the first of them."""
        if self.members is None:
            return make()
        hosts = self._told(self.members.host, self.count)
        leads = next(i for i in sorted(hosts) if hosts[i] == hosts[self.index]) == self.index
        made = [make()] if leads else []
        self.meet()
        return made[0] if leads else make()

    def is_last(self, interrupts: signals.Interrupts) -> bool:
        """Whether to stop before the next unit of work: see `members.py`."""
        return self.members.is_last() if self.members else bool(interrupts)

    def _told(self, text: str | None, number: int) -> dict[int, str]:
        """Gives `text` to all (None: nothing), and takes what `number` processes give."""
        assert self._store is not None
        self._calls += 1
        folder = f"{_FOLDER}{self._calls}/"
        if text is not None:
            self._store.key_value_set(f"{folder}{self.index}", text)
        pause = 0.005
        while len(found := self._store.key_value_dir_get(folder)) < number:
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return {int(key.rpartition("/")[2]): value for key, value in found}

    # --- What must be the same ---------------------------------------------------------------

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Raises: ConfigError by the first key whose value differs from that on process 0."""
        if self.count == 1:
            return
        own = json.loads(json.dumps(values))
        first = self.from_first(lambda: own)
        for key in sorted(own.keys() | first.keys()):
            if own.get(key) != first.get(key):
                accepted = f"it has {first.get(key)!r}"
                raise ConfigError(key, "differs from process 0", own.get(key), accepted)

    def check_shared(self, workdir: AnyPath) -> None:
        """Raises: ConfigError unless all processes find in `workdir` what process 0 puts there.

        That is a file of a moment, in the nearest folder that exists: on a refusal nothing is left.
        """
        if self.count == 1:
            return
        workdir = workdir.absolute()
        has_folders = not isinstance(workdir, RemotePath)
        places = [workdir, *workdir.parents] if has_folders else [workdir]
        name, depth = f".shared-{secrets.token_hex(8)}", 0
        if self.is_first:
            if has_folders:
                depth = next(i for i, place in enumerate(places) if place.is_dir())
            (places[depth] / name).write_bytes(b"")
        try:
            name, depth = self.from_first(lambda: (name, depth))
            until = time.monotonic() + _SECONDS_FOR_A_FILE
            while not (found := (places[depth] / name).exists()) and time.monotonic() < until:
                time.sleep(0.1)
            if not found:
                problem = "is not the folder that process 0 has under this name"
                accepted = "a folder that all hosts share"
                raise ConfigError("--workdir", problem, str(workdir), accepted)
            self.meet()
        finally:
            if self.is_first:
                (places[depth] / name).unlink(missing_ok=True)


_current = Group()


def current() -> Group:
    """The group of this process."""
    return _current


def enter(group: Group) -> None:
    """Makes `group` the current one."""
    global _current
    _current = group
