"""What was wrong, in a line: a wrong result is compared with those of likely mistakes.

Who sees whom is read off with zero queries and one-hot values: all keys that are seen then have
the same weight, and each shows in a place of its own.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from hybrid.testing import oracle
from hybrid.testing.call import AttentionCall
from hybrid.testing.subject import Mistake, Subject

_SEEN = 1e-6  # weights above are of keys that are seen: the least right one is 1/s


def require_values(subject: Subject, call: AttentionCall) -> None:
    """Raises: Mistake where the callable gives other values than the oracle."""
    got, wanted = subject.out(call), oracle.out(call)
    limit = subject.values_tolerance * max(1.0, float(np.abs(wanted).max()))
    is_near = np.abs(got - wanted) <= limit
    if is_near.all():
        return
    require_visible(subject, call)
    row, token, head, place = _first(~np.isfinite(got) if not np.isfinite(got).all() else ~is_near)
    if not np.isfinite(got).all():
        raise Mistake(f"{_token(row, token)}, head {head} is {got[row, token, head, place]}")
    message = f"off by {np.abs(got - wanted).max():.1e} of {np.abs(wanted).max():.1e}"
    for text, other in _score_mistakes(call):
        if np.all(np.abs(got - oracle.out(other)) <= limit):
            raise Mistake(f"{message}: {text}")
    raise Mistake(f"{message}, first at {_token(row, token)}, head {head}")


def require_gradients(subject: Subject, call: AttentionCall) -> None:
    """Raises: Mistake where a gradient is not the oracle's."""
    dout = np.random.default_rng(1).normal(size=call.q.shape).astype(call.q.dtype)
    got, wanted = subject.gradients_of(call, dout), oracle.gradients(call, dout)
    for name, want in wanted.items():
        _require_array(name, got.get(name), want)
    wrong = [name for name in wanted if not _is_near(subject, got[name], wanted[name])]
    if not wrong:
        return
    name, found, want = wrong[0], got[wrong[0]], wanted[wrong[0]]
    ratio = float(np.vdot(found, want) / max(np.vdot(want, want), 1e-30))
    if _is_near(subject, found, ratio * want):
        raise Mistake(f"{name} is {ratio:.3g} times what it should be")
    message = f"{name} is off by {np.abs(found - want).max():.1e} of {np.abs(want).max():.1e}"
    for text, other in (*_band_mistakes(call), *_score_mistakes(call)):
        guess = oracle.gradients(other, dout)
        if all(name in guess and _is_near(subject, got[name], guess[name]) for name in wrong):
            raise Mistake(f"{message}: {text}")
    raise Mistake(message)


def _require_array(name, found, want):
    if found is None:
        raise Mistake(f"{name} is missing")
    if found.shape != want.shape:
        raise Mistake(f"{name} is {list(found.shape)}, its input is {list(want.shape)}")
    if not np.isfinite(found).all():
        raise Mistake(f"{name} is not finite, first at {_first(~np.isfinite(found))}")


def _is_near(subject, found, want):
    limit = subject.gradients_tolerance * max(1.0, float(np.abs(want).max()))
    return found.shape == want.shape and bool(np.all(np.abs(found - want) <= limit))


def require_visible(subject: Subject, call: AttentionCall) -> None:
    """Raises: Mistake where a query sees other keys than the call says."""
    message = difference(call, seen(subject, call))
    if message:
        raise Mistake(message)


def seen(subject: Subject, call: AttentionCall) -> np.ndarray:
    """Which keys each query gives a weight to in any head, bool [b, t, s]."""
    zeros, num_keys, width = np.zeros_like(call.q), call.k.shape[1], call.v.shape[3]
    found = []
    for start in range(0, num_keys, width):
        keys = np.arange(start, min(start + width, num_keys))
        values = np.zeros_like(call.v)
        values[:, keys, :, keys - start] = 1
        out = subject.out(dataclasses.replace(call, q=zeros, v=values))[..., : len(keys)]
        if not np.isfinite(out[call.visible().any(-1)]).all():
            raise Mistake("the result is not finite where all scores are 0")
        found.append((out > _SEEN).any(2))
    return np.concatenate(found, -1)


def difference(call: AttentionCall, got: np.ndarray) -> str | None:
    """The first query that sees other keys than it should, in words; None where there is none.

    Args:
      got: bool [b, t, s].
    """
    wanted = call.visible()
    wrong = np.argwhere((got != wanted).any(-1))
    if not len(wrong):
        return None
    row, token = wrong[0]
    found, right = got[row, token], wanted[row, token]
    message = f"{_token(row, token)} {_sees(call, row, token, found, right)}"
    for text, other in _band_mistakes(call):
        if np.array_equal(other.visible(), got):
            return f"{message}: {text}"
    if got.all():
        return f"{message}: as if nothing were masked"
    return message


def _band_mistakes(call: AttentionCall) -> Iterator[tuple[str, AttentionCall]]:
    """Likely mistakes about who sees whom: in words, and the call that they would be right for."""
    with_ = dataclasses.replace
    size, num_queries, num_keys = call.window_size, call.q.shape[1], call.k.shape[1]
    if size is not None:
        yield "as if there were no window", with_(call, window_size=None)
        yield f"as if window_size were {size + 1}", with_(call, window_size=size + 1)
        if size > 1:
            yield f"as if window_size were {size - 1}", with_(call, window_size=size - 1)
    if call.q_segments is not None:
        yield "as if there were no segments", with_(call, q_segments=None, kv_segments=None)
    if call.offset:
        yield "as if the offset were 0 (aligned top left)", with_(call, offset=0)
    if call.q_positions is None and num_keys - num_queries > call.offset:
        last = num_keys - num_queries
        yield (
            "as if the last query were the last key's (aligned bottom right)",
            with_(call, offset=last),
        )
    yield "as if it were not causal", _acausal(call)


def _acausal(call):
    """The call with all queries at the last key; with a window that is no more than a guess."""
    keys = np.broadcast_to(call.positions()[1], call.k.shape[:2]).astype(np.int32)
    queries = np.full(call.q.shape[:2], max(keys.max(), 0), np.int32)
    positions = {"q_positions": queries, "kv_positions": keys}
    return dataclasses.replace(call, offset=0, window_size=None, **positions)


def _score_mistakes(call: AttentionCall) -> Iterator[tuple[str, AttentionCall]]:
    """The same about scores and heads."""
    with_ = dataclasses.replace
    root = call.q.shape[3] ** -0.5
    scales = {"scale²": call.scale**2, "scale/√h": call.scale * root, "1/√h": root, "1": 1.0}
    for name, scale in scales.items():
        if scale != call.scale:
            yield f"as if scores were multiplied by {name}", with_(call, scale=scale)
    if call.softcap is not None:
        yield "as if there were no softcap", with_(call, softcap=None)
        yield (
            "as if the softcap came before the scale",
            with_(call, softcap=call.softcap * call.scale),
        )
    if call.sinks is not None:
        yield "as if there were no sinks", with_(call, sinks=None)
        yield "as if sinks were scaled", with_(call, sinks=call.sinks * call.scale)
        if call.softcap is not None:
            capped = call.softcap * np.tanh(call.sinks / call.softcap)
            yield "as if sinks were capped", with_(call, sinks=capped)
    group = call.q.shape[2] // call.k.shape[2]
    if group > 1:
        k, v = (np.tile(array, (1, 1, group, 1)) for array in (call.k, call.v))
        yield "as if query head i read KV head i % k", with_(call, k=k, v=v)


def _token(row, token):
    return f"token {token}" + (f" of row {row}" if row else "")


def _first(mask):
    return [int(index) for index in np.argwhere(mask)[0]]


def _sees(call, row, token, found, right):
    """What a query sees, [s], beside what it should."""
    extra, missing = np.flatnonzero(found & ~right), np.flatnonzero(right & ~found)
    q_positions, kv_positions = (array[row % len(array)] for array in call.positions())
    later = extra[kv_positions[extra] > q_positions[token]]
    if later.size:
        return f"depends on {_key(call, later[0])}, which is later"
    absent = extra[kv_positions[extra] < 0]
    if absent.size:
        return f"sees key {absent[0]}, whose position is -1"
    if call.q_segments is not None:
        segment = np.asarray(call.q_segments)[row, token]
        others = extra[np.asarray(call.kv_segments)[row, extra] != segment]
        if others.size:
            return f"sees the document before: key {others[-1]}"
    count = "1 key" if found.sum() == 1 else f"{found.sum()} keys"
    if call.window_size is not None and call.q_segments is None:
        return f"sees {count}{_of(right)}, window_size={call.window_size}"
    key = (missing if missing.size else extra)[0]
    return f"sees {count}{_of(right)}, {'not ' if missing.size else ''}key {key}"


def _of(right):
    return f" in place of {int(right.sum())}"


def _key(call, key):
    """A key, by the token that it belongs to."""
    is_row = "offset" not in call.features and "positions" not in call.features
    return f"token {key}" if is_row else f"key {key}"
