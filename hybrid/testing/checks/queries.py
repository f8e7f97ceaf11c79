"""Checks of queries that are not the tokens of all keys: chunks behind a cache, rings."""

import numpy as np

from hybrid.testing.checks.calls import (
    WINDOW,
    Check,
    all_served,
    documents,
    keys_and_values,
    random_call,
    with_windows,
)


def _offset(subject):
    length, windows = subject.length, (None, WINDOW, 50)
    calls = with_windows(subject, length, length + 37, offset=37, windows=windows)
    return all_served(subject, calls, keys_and_values)


def _one_query(subject):
    offset = subject.length + 13
    calls = with_windows(subject, 1, offset + 1, offset=offset)
    return all_served(subject, calls, keys_and_values)


def _offset_and_segments(subject):
    offset, ids = 37, documents(subject.length + 37)
    segments = {"q_segments": ids[:, offset:], "kv_segments": ids}
    calls = with_windows(subject, subject.length, ids.shape[1], offset=offset, **segments)
    return all_served(subject, calls, keys_and_values)


def _keys_behind(subject):
    calls = (
        random_call(subject, size, offset + size + 29, offset=offset, window_size=window_size)
        for size, offset, window_size in ((40, 0, None), (40, 21, None), (40, 21, 8), (1, 21, None))
    )
    return all_served(subject, calls, keys_and_values)


def _positions(subject):
    num_keys, rng = 90, np.random.default_rng(0)
    slots = np.stack([rng.permutation(num_keys) for _ in range(2)]).astype(np.int32)
    slots[rng.random(slots.shape) < 1 / 3] = -1
    first = np.where(slots < 0, num_keys, slots).min(1, keepdims=True)
    queries = np.maximum(rng.integers(0, num_keys, (2, 40)), first).astype(np.int32)
    positions = {"q_positions": queries, "kv_positions": slots}
    calls = with_windows(subject, 40, num_keys, windows=(None, 20), **positions)
    return all_served(subject, calls, keys_and_values)


CHECKS = (
    Check("offset", "queries behind earlier keys (a chunk behind a cache) see those too", _offset),
    Check("one query", "a decoded token sees all before it, or its window of that", _one_query),
    Check(
        "offset and segments",
        "the segment of query i is that of its own key, not of key i",
        _offset_and_segments,
    ),
    Check(
        "keys behind", "keys behind the queries' (free room of a cache) are unseen", _keys_behind
    ),
    Check("positions", "keys in any order, with empty slots (a ring cache)", _positions),
)
