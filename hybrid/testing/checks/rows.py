"""Checks of rows that attend to themselves."""

import dataclasses

import numpy as np

from hybrid.testing.call import AttentionCall
from hybrid.testing.checks.calls import (
    WINDOW,
    Check,
    all_served,
    first_served,
    keys_and_values,
    packed,
    random_call,
    with_windows,
)
from hybrid.testing.diagnosis import require_visible
from hybrid.testing.subject import Mistake, Subject


def _result(subject):
    first_served(subject, with_windows(subject, subject.length), _require_form)


def _require_form(subject, call):
    first, second = subject.raw(call), subject.raw(call)
    if first.shape != call.q.shape:
        raise Mistake(f"the result is {list(first.shape)}, q is {list(call.q.shape)}")
    if first.dtype != call.q.dtype:
        raise Mistake(f"the result is {first.dtype}, q is {call.q.dtype}")
    if not np.array_equal(first, second):
        raise Mistake("the same call gives other bits when it runs again")


def _values(subject):
    first_served(subject, with_windows(subject, subject.length))


def _causality(subject):
    return all_served(subject, with_windows(subject, subject.length), _require_causal)


def _require_causal(subject, call):
    at, base = subject.length // 3, subject.out(call)
    for keys in (slice(at + 1, at + 2), slice(at + 1, None)):
        moved = _moved(subject, call, keys, base)[: at + 1]
        if moved.any():
            later = f"token {at + 1}" if keys.stop else f"tokens behind token {at}"
            raise Mistake(f"token {np.flatnonzero(moved)[0]} depends on {later}")


def _moved(subject: Subject, call: AttentionCall, keys: slice, base: np.ndarray) -> np.ndarray:
    """Whether each query's result changes with the keys and values of a slice, bool [t]."""
    k, v = call.k.copy(), call.v.copy()
    k[:, keys], v[:, keys] = -2 * k[:, keys], 3 - v[:, keys]
    changed = subject.out(dataclasses.replace(call, k=k, v=v))
    return ~(np.abs(changed - base).max((0, 2, 3)) <= subject.values_tolerance)


def _window_reach(subject):
    at, call = subject.length - 3, random_call(subject, subject.length, window_size=WINDOW)
    base, last = subject.out(call), at - WINDOW + 1
    if _moved(subject, call, slice(last - 1, last), base)[at]:
        raise Mistake(f"token {at} depends on token {last - 1}, window_size={WINDOW}")
    if _moved(subject, call, slice(None, last), base)[at]:
        raise Mistake(f"token {at} depends on tokens before {last}, window_size={WINDOW}")
    if not _moved(subject, call, slice(last, last + 1), base)[at]:
        raise Mistake(f"token {at} does not depend on token {last}, window_size={WINDOW}")


def _window_edge(subject):
    windows = (WINDOW, 1, 2, subject.length + 5)
    calls = with_windows(subject, subject.length, windows=windows)
    return all_served(subject, calls, require_visible)


def _long_rows(subject):
    windows = (None, 33, 2 * subject.length + 1)
    return all_served(subject, with_windows(subject, 5 * subject.length, windows=windows))


def _ragged_lengths(subject):
    lengths = (1, 37, 2 * subject.length + 45)
    calls = (
        random_call(subject, length, window_size=window_size)
        for length in lengths
        for window_size in (None, 33)
    )
    return all_served(subject, calls)


def _segments(subject):
    call = random_call(subject, subject.length, **packed(subject.length))
    keys_and_values(subject, call)


def _segments_and_window(subject):
    fields = {"window_size": WINDOW, **packed(subject.length)}
    keys_and_values(subject, random_call(subject, subject.length, **fields))


CHECKS = (
    Check("result", "shape and dtype are those of q; a second run gives the same bits", _result),
    Check("values", "causal attention equals the oracle", _values),
    Check("causality", "other keys and values behind a token change nothing before", _causality),
    Check("window reach", "changing the key 7 back counts, the one 8 back does not", _window_reach),
    Check(
        "window edge", "a window of W is W keys, counted, the token's own included", _window_edge
    ),
    Check("long rows", "windows narrower and wider than a block, rows of several", _long_rows),
    Check("ragged lengths", "rows of no multiple of a block, down to one token", _ragged_lengths),
    Check("segments", "packed documents do not see each other, in each row its own", _segments),
    Check("segments and window", "both hold: neither replaces the other", _segments_and_window),
)
