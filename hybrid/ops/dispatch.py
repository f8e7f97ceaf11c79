"""How an operation chooses among its implementations, and how one is split over a mesh.

An `Operation` is an ordered table of implementations. A call becomes a request: a small frozen
dataclass with all that decides who may serve it, in sizes of one device. With "auto" the first
implementation serves that does not refuse; a named one serves or raises `Unsupported`: it never
falls back. The choice and the reasons of those preferred to it are logged, each line once.

The compiler can split the products of plain jnp code over a mesh by itself, but not a kernel. An
implementation that says `needs_shard_map` runs under `jax.shard_map`, each device on its part, and
the parts are those of the one table of rules (`hybrid/sharding.py`).

The functions that users call are the doors: `attention/__init__.py` and `experts/__init__.py`.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import jax

from hybrid import sharding

_log = logging.getLogger("hybrid")
_forced = contextvars.ContextVar[tuple[str, str] | None]("backend", default=None)


class Unsupported(ValueError):
    """An implementation cannot serve this request; the message is the reason."""


def backend() -> str:
    """The backend that programs are made for, "cpu", "gpu" or "tpu"; by default jax's own."""
    forced = _forced.get()
    return forced[0] if forced else jax.default_backend()


def device_kind() -> str:
    """The kind of device that programs are made for, as jax names it; "" where not known."""
    forced = _forced.get()
    return forced[1] if forced else jax.devices()[0].device_kind


@contextlib.contextmanager
def use_backend(name: str, kind: str = "") -> Iterator[None]:
    """Operations choose as on the backend `name`: to compile for it, or to interpret its kernels.

    kind: of its devices, as `jax.Device.device_kind` names it.

    Tracing is what it acts on, and `jax.jit` keeps what it traced by function and shapes: under
    another backend, jit another function.
    """
    token = _forced.set((name, kind))
    try:
        yield
    finally:
        _forced.reset(token)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
      function: computes; its arguments are the operation's own.
      check: raises `Unsupported` with a reason in words where a request cannot be served.
      needs_shard_map: the compiler cannot split it over a mesh.
    """

    name: str
    function: Callable[..., jax.Array]
    check: Callable[[Any], None] = lambda request: None
    needs_shard_map: bool = False

    def refusal(self, request: Any) -> str | None:
        """Why it does not serve `request`; None where it does."""
        try:
            self.check(request)
        except Unsupported as refusal:
            return str(refusal)
        return None


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation and its implementations, in order of preference.

    A request is written in a line by `str`, which is how the log and errors name it.
    """

    name: str
    implementations: tuple[Implementation, ...]
    is_logged: bool = True  # not where the choice would fall into text that is being printed

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a call may give in place of "auto"."""
        return tuple(implementation.name for implementation in self.implementations)

    def explain(self, request: Any) -> dict[str, str | None]:
        """Why each implementation refuses `request`, None where it serves; preferred ones first."""
        return {one.name: one.refusal(request) for one in self.implementations}

    def choose(self, request: Any, implementation: str = "auto") -> Implementation:
        """The implementation that serves `request`.

        Raises: Unsupported where the named one, or every one, refuses; ValueError for an unknown
          name.
        """
        named = [one for one in self.implementations if implementation in ("auto", one.name)]
        if not named:
            known = ", ".join(["auto", *self.names])
            raise ValueError(f"{self.name}: no implementation {implementation!r}; known: {known}")
        refusals = {one.name: one.refusal(request) for one in named}
        refused = preferred_refusals(refusals)
        for one in named:
            if refusals[one.name] is None:
                if len(self.implementations) > 1 and self.is_logged:
                    _log_once(f"{request}: {one.name}{f' ({refused})' if refused else ''}")
                return one
        raise Unsupported(refused)


def preferred_refusals(refusals: dict[str, str | None]) -> str:
    """The reasons of those preferred to the one that serves, "name: reason; name: reason"."""
    before = takewhile(lambda row: row[1] is not None, refusals.items())
    return "; ".join(f"{name}: {reason}" for name, reason in before)


@functools.cache
def _log_once(line: str) -> None:
    _log.info(line)


def per_device(
    function: Callable[..., Any], operands: tuple, names: tuple, results: Any = None
) -> Any:
    """`function` of the operands, each device computing on its parts of them, under `shard_map`.

    Args:
      operands: a tuple of trees of arrays.
      names: the same trees with the tuple of logical names of each array's axes.
      results: a tuple with the (names, shape) of each result; None: one, split as the first
        operand.
    Returns: what the function returns. Without a mesh: `function(*operands)`.
    """
    mesh = sharding.active_mesh()
    if mesh is None:
        return function(*operands)
    specs = jax.tree.map(
        lambda leaf, names: sharding.spec_of(mesh, names, leaf.shape), operands, names
    )
    out_specs = specs[0]
    if results is not None:
        out_specs = tuple(one and sharding.spec_of(mesh, *one) for one in results)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)(
        *operands
    )
