"""The door to attention: one call, several implementations, reasons for every refusal.

`attend` takes queries, keys, values and a `Band`. With "auto" it asks the implementations in the
order of `IMPLEMENTATIONS` and takes the first that serves the request; the choice and the reasons
of those before it are logged once. A named implementation either serves or raises `Unsupported`:
it never falls back, and no part of a band is ever dropped.

Read next: `reference.py` (the oracle), `chunked.py` (what training uses), `banded.py`.
"""

import functools
import logging
from typing import NamedTuple

import jax

from hybrid.ops.attention import banded, chunked, reference
from hybrid.ops.attention.support import Request, Unsupported
from hybrid.ops.band import Band

__all__ = [
    "IMPLEMENTATIONS",
    "NAMES",
    "Request",
    "Row",
    "Unsupported",
    "attend",
    "choose",
    "explain",
]

_MODULES = {"chunked": chunked, "banded": banded, "reference": reference}
NAMES = tuple(_MODULES)
# Names in order of preference, by layer kind.
IMPLEMENTATIONS = {
    "local": ("chunked", "banded", "reference"),
    "global": ("chunked", "reference"),
}
_log = logging.getLogger("hybrid")


class Row(NamedTuple):
    """One line of `explain`: `reason` is why it refuses, None where it serves."""

    implementation: str
    reason: str | None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    band: Band,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention over the keys that `band` lets each query see.

    Args:
      q: [b, t, n, h].  k, v: [b, s, k, h]; query head i reads KV head i // (n / k).
      band: who sees whom.
      scale: multiplies the scores, before `softcap`.
      softcap: scores become softcap·tanh(scores/softcap).
      sinks: [n], a logit that joins the denominator of each head's softmax and has no value;
        neither scaled nor capped. Source: gpt-oss (2508.10925), sec. 2.2.
      implementation: "auto" or a name of `IMPLEMENTATIONS`.
    Returns: [b, t, n, h] in q's dtype; a query that sees no key gives zeros.
    Raises: ValueError where shapes disagree; Unsupported where the named implementation refuses.
    """
    _check_shapes(q, k, v, band)
    if sinks is not None and sinks.shape != q.shape[2:3]:
        raise ValueError(f"sinks: shape is {sinks.shape}, q has {q.shape[2]} heads (sinks is [n])")
    name = choose(Request.of(q, k, band, softcap, sinks), implementation)
    return _MODULES[name].attend(q, k, v, band, scale=scale, softcap=softcap, sinks=sinks)


@functools.cache
def choose(request: Request, implementation: str = "auto") -> str:
    """The name of the implementation that serves `request`; logged once a request.

    Raises: Unsupported where the named one, or every one, refuses; ValueError for unknown names.
    """
    if implementation != "auto":
        if implementation not in _MODULES:
            known = ", ".join(["auto", *_MODULES])
            raise ValueError(f"attention: no implementation {implementation!r}; known: {known}")
        rows = [Row(implementation, _refusal(implementation, request))]
    else:
        rows = explain(request)
    refused = "; ".join(f"{row.implementation}: {row.reason}" for row in rows if row.reason)
    name = next((row.implementation for row in rows if row.reason is None), None)
    if name is None:
        raise Unsupported(refused)
    _log.info(
        "attention of %s layers [t=%d, s=%d, h=%d, %s, %s]: %s%s",
        *(request.kind, request.query_length, request.key_length, request.head_dim),
        *(request.dtype, request.backend, name, f" ({refused})" if refused else ""),
    )
    return name


def explain(request: Request) -> list[Row]:
    """Who serves `request` and why the others refuse, in order of preference."""
    return [Row(name, _refusal(name, request)) for name in IMPLEMENTATIONS[request.kind]]


def _refusal(name, request):
    try:
        _MODULES[name].check(request)
    except Unsupported as refusal:
        return str(refusal)
    return None


def _check_shapes(q, k, v, band):
    q_letters, k_letters = "(q is [b, t, n, h])", "(k and v are [b, s, k, h])"

    def need(name, what, got, whose, wanted, letters=q_letters):
        if got != wanted:
            raise ValueError(f"{name}: {what} is {got}, {whose} has {wanted} {letters}")

    for name, array, letters in (("q", q, q_letters), ("k", k, k_letters), ("v", v, k_letters)):
        if array.ndim != 4:
            raise ValueError(f"{name}: has {array.ndim} axes, needs 4 {letters}")
    for name, array in (("k", k), ("v", v)):
        need(name, "batch", array.shape[0], "q", q.shape[0])
        need(name, "head_dim", array.shape[3], "q", q.shape[3])
    need("v", "length", v.shape[1], "k", k.shape[1], k_letters)
    need("v", "number of heads", v.shape[2], "k", k.shape[2], k_letters)
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"k: {k.shape[2]} heads do not divide q's {q.shape[2]} {q_letters}")
    if band.is_self:
        need("k", "length without positions in the band", k.shape[1], "q", q.shape[1])
    for name in ("q_segments", "q_positions"):
        _check_side(band, name, q.shape[:2], "[b, t]")
    for name in ("kv_segments", "kv_positions"):
        _check_side(band, name, k.shape[:2], "[b, s]")


def _check_side(band, name, wanted, letters):
    array = getattr(band, name)
    if array is not None and array.shape != wanted:
        raise ValueError(f"band.{name}: shape is {array.shape}, needs {letters} = {wanted}")
