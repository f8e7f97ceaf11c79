"""Checks of gradients, each of q, k, v and of sinks where there are any."""

import numpy as np

from hybrid.testing.checks.calls import (
    WINDOW,
    Check,
    first_served,
    packed,
    random_call,
    unseen_calls,
    with_windows,
)
from hybrid.testing.diagnosis import require_gradients
from hybrid.testing.subject import Mistake


def _gradients(subject):
    first_served(subject, with_windows(subject, subject.length), require_gradients)


def _window(subject):
    call = random_call(subject, 2 * subject.length + 45, window_size=33)
    require_gradients(subject, call)


def _window_and_segments(subject):
    length = 2 * subject.length + 45
    require_gradients(subject, random_call(subject, length, window_size=33, **packed(length)))


def _offset(subject):
    length, windows = subject.length, (WINDOW, None)
    calls = with_windows(subject, length, length + 37, offset=37, windows=windows)
    first_served(subject, calls, require_gradients)


def _softcap_and_scale(subject):
    calls = with_windows(subject, subject.length, scale=0.25, softcap=2.0)
    first_served(subject, calls, require_gradients)


def _sinks(subject):
    calls = with_windows(subject, subject.length, sinks=True)
    first_served(subject, calls, require_gradients)


def _unseen_queries(subject):
    first_served(subject, unseen_calls(subject), _require_no_gradients)


def _require_no_gradients(subject, call):
    is_hidden = ~call.visible().any(-1)[..., None, None]
    dout = np.where(is_hidden, np.ones_like(call.q), np.zeros_like(call.q))
    for name, gradient in subject.gradients_of(call, dout).items():
        largest = np.abs(gradient).max()
        if not largest <= 1e-6:
            raise Mistake(f"{name} is up to {largest:.2g} from queries that see no key")
    require_gradients(subject, call)


CHECKS = (
    Check("gradients", "equal the oracle's", _gradients),
    Check("gradients: window", "the backward masks what the forward masks", _window),
    Check(
        "gradients: window and segments",
        "the same with documents, in ragged rows",
        _window_and_segments,
    ),
    Check("gradients: offset", "of queries behind keys, and of keys that none sees", _offset),
    Check(
        "gradients: softcap and scale", "the cap's slope, and the scale once", _softcap_and_scale
    ),
    Check("gradients: sinks", "of the sinks, and of all else beside them", _sinks),
    Check(
        "gradients: unseen queries",
        "finite, and none from a query that sees no key",
        _unseen_queries,
    ),
)
