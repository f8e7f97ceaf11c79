"""What all checks are made of: random calls, and what becomes of those that are refused."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hybrid.ops.dispatch import Unsupported
from hybrid.testing.call import AttentionCall
from hybrid.testing.diagnosis import require_values, require_visible
from hybrid.testing.subject import Subject, first_line

WINDOW = 8


@dataclasses.dataclass(frozen=True)
class Check:
    """A check and the reason for it, in a line.

    Attributes:
      run: raises `Mistake`, or `Unsupported` where nothing of it is served; returns what of it was
        refused, or None.
    """

    name: str
    reason: str
    run: Callable[[Subject], str | None]


def random_call(
    subject: Subject,
    num_queries: int,
    num_keys: int | None = None,
    *,
    heads: tuple[int, int] = (4, 2),
    **fields: Any,
) -> AttentionCall:
    """Two rows of normal numbers whose scores have a deviation of about 1.

    Args:
      num_keys: None: `num_queries`.
      heads: n and k.
      fields: of `AttentionCall`; `sinks=True` draws them.
    """
    num_heads, num_kv_heads = heads
    num_keys, width = num_queries if num_keys is None else num_keys, subject.head_dim
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(subject.dtype)

    q = normal(2, num_queries, num_heads, width)
    k, v = (normal(2, num_keys, num_kv_heads, width) for _ in range(2))
    if fields.get("sinks"):
        fields["sinks"] = normal(num_heads)
    return AttentionCall(q, k, v, **({"scale": width**-0.5} | fields))


def with_windows(
    subject: Subject, *sizes: int, windows: Sequence[int | None] = (None, WINDOW), **fields: Any
) -> Iterator[AttentionCall]:
    """`random_call` with each window size."""
    return (random_call(subject, *sizes, window_size=size, **fields) for size in windows)


def documents(num_tokens: int) -> np.ndarray:
    """Segment ids of two rows, int32 [2, num_tokens], cut at other places; one is a token long."""
    starts = ((num_tokens // 3, num_tokens // 3 + 1), (num_tokens // 2, num_tokens - 5))
    tokens = np.arange(num_tokens)
    rows = [1 + sum((tokens >= start).astype(np.int32) for start in row) for row in starts]
    return np.stack(rows).astype(np.int32)


def packed(num_tokens: int) -> dict[str, np.ndarray]:
    """The fields of rows of `documents`."""
    ids = documents(num_tokens)
    return {"q_segments": ids, "kv_segments": ids}


def unseen_calls(subject: Subject) -> Iterator[AttentionCall]:
    """Calls whose first nine queries see no key, by positions and by segments."""
    length = subject.length
    tokens = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    ids = np.ones((2, length), np.int32)
    padded: dict[str, Any] = {
        "q_positions": tokens,
        "kv_positions": np.where(tokens < 9, -1, tokens),
    }
    other: dict[str, Any] = {"q_segments": np.where(tokens < 9, 2, ids), "kv_segments": ids}
    for fields in (padded, other):
        yield from with_windows(subject, length, **fields)


def keys_and_values(subject: Subject, call: AttentionCall) -> None:
    """Who sees whom, whose mistakes have the clearer words, and then the values."""
    require_visible(subject, call)
    require_values(subject, call)


def first_served(
    subject: Subject,
    calls: Iterable[AttentionCall],
    run: Callable[[Subject, AttentionCall], Any] = require_values,
) -> None:
    """`run` of the first call that is not refused.  Raises: Unsupported with all reasons."""
    reasons = []
    for call in calls:
        try:
            run(subject, call)
        except (Unsupported, NotImplementedError) as refusal:
            reasons.append(first_line(refusal))
        else:
            return
    raise Unsupported("; or ".join(dict.fromkeys(reasons)))


def all_served(
    subject: Subject,
    calls: Iterable[AttentionCall],
    run: Callable[[Subject, AttentionCall], Any] = require_values,
) -> str | None:
    """`run` of every call that is not refused; what was refused, or None.

    Raises: Unsupported with all reasons where none is served.
    """
    reasons, served = [], 0
    for call in calls:
        try:
            run(subject, call)
            served += 1
        except (Unsupported, NotImplementedError) as refusal:
            reasons.append(first_line(refusal))
    told = "; ".join(dict.fromkeys(reasons))
    if not served:
        raise Unsupported(told)
    return f"in part, refused: {told}" if told else None
