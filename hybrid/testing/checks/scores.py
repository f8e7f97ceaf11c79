"""Checks of heads, scores and sums."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from hybrid.testing import oracle
from hybrid.testing.call import AttentionCall
from hybrid.testing.checks.calls import (
    WINDOW,
    Check,
    all_served,
    first_served,
    random_call,
    unseen_calls,
    with_windows,
)
from hybrid.testing.diagnosis import require_values, require_visible
from hybrid.testing.subject import Mistake

MANY = 40_000


def _grouped_heads(subject):
    first_served(subject, with_windows(subject, subject.length, heads=(6, 2)), _require_groups)
    for heads in ((6, 2), (4, 1), (2, 2)):
        first_served(subject, with_windows(subject, subject.length, heads=heads))


def _require_groups(subject, call):
    numbers = np.arange(call.k.shape[2]).astype(call.v.dtype)[:, None]
    numbered = dataclasses.replace(call, v=np.ones_like(call.v) * numbers)
    group = call.q.shape[2] // call.k.shape[2]
    for head, got in enumerate(subject.out(numbered)[0, -1, :, 0]):
        if not abs(got - head // group) < 0.1:
            raise Mistake(f"query head {head} reads KV head {got:.2g} in place of {head // group}")


def _scale(subject):
    first_served(subject, with_windows(subject, subject.length, scale=0.25))


def _large_scores(subject):
    first_served(subject, with_windows(subject, subject.length), _require_range)


def _require_range(subject, call):
    for sign in (1, -1):
        q, k = np.zeros_like(call.q), np.zeros_like(call.k)
        q[..., 0], k[:, :5, :, 0], k[:, 5, :, 0] = 200, -200, sign * 200
        require_values(subject, dataclasses.replace(call, q=q, k=k, scale=1.0))


def _softcap(subject):
    fields = {"scale": 3 * subject.head_dim**-0.5, "softcap": 2.0}
    first_served(subject, with_windows(subject, subject.length, **fields))


def _softcap_and_mask(subject):
    call = random_call(subject, subject.length, softcap=2.0, window_size=WINDOW)
    try:
        require_visible(subject, call)
    except Mistake as mistake:
        require_visible(subject, dataclasses.replace(call, softcap=None))
        raise Mistake(f"{mistake} (only under a softcap: the mask comes before it)") from None
    require_values(subject, call)


def _softcap_of_large_scores(subject):
    fields = {"softcap": 2.0, "scale": 100.0}
    first_served(subject, with_windows(subject, subject.length, **fields), _require_finite)


def _require_finite(subject, call):
    if not np.isfinite(subject.out(call)).all():
        raise Mistake("not finite where scores are 400 times the softcap: use tanh")
    require_values(subject, call)


def _sinks(subject):
    return all_served(subject, with_windows(subject, subject.length, scale=0.25, sinks=True))


def _sinks_and_softcap(subject):
    first_served(subject, with_windows(subject, subject.length, sinks=True, softcap=1.0))


def _unseen_queries(subject):
    first_served(subject, unseen_calls(subject), _require_zeros)


def _require_zeros(subject, call):
    out, is_hidden = subject.out(call), ~call.visible().any(-1)
    row, token = np.argwhere(is_hidden)[0]
    got = out[row, token]
    if not np.isfinite(got).all():
        raise Mistake(f"{got.flat[0]} for token {token}, which sees no key")
    group = call.q.shape[2] // call.k.shape[2]
    mean = np.repeat(call.v[row].astype(np.float64).mean(0), group, 0)
    if np.abs(got - mean).max() <= subject.values_tolerance:
        raise Mistake(f"the mean of all values for token {token}, which sees no key")
    if np.abs(out[is_hidden]).max() > subject.values_tolerance:
        raise Mistake(f"{np.abs(got).max():.2g}, not zeros, for token {token}, which sees no key")
    require_values(subject, call)


def _long_sums(subject):
    num_queries, dtype = 8, jnp.bfloat16
    values = np.ones((1, MANY, 1, subject.head_dim), dtype)
    values[:, : MANY // 2, :, 1] = 0
    queries = np.zeros((1, num_queries, 1, subject.head_dim), dtype)
    call = AttentionCall(queries, np.zeros_like(values), values, offset=MANY - num_queries)
    q_positions, kv_positions = (array.astype(np.int32) for array in call.positions())
    explicit = {"offset": 0, "q_positions": q_positions, "kv_positions": kv_positions}
    first_served(subject, (call, dataclasses.replace(call, **explicit)), _require_long_sums)


def _require_long_sums(subject, call):
    out, wanted = subject.out(call), oracle.out(call)
    wrong = np.argwhere(~(np.abs(out - wanted) <= 0.01))
    if len(wrong):
        got, right = out[tuple(wrong[0])], wanted[tuple(wrong[0])]
        raise Mistake(
            f"equal weights of {MANY} keys give {got:.3g} in place of {right:.3g}: "
            "sums not in float32"
        )


CHECKS = (
    Check(
        "grouped heads",
        "query head i reads KV head i // (n / k); one KV head serves all",
        _grouped_heads,
    ),
    Check("scale", "scores are multiplied by `scale`, once, and by nothing else", _scale),
    Check(
        "large scores",
        "scores of ±40 000 do not overflow and stay above what is masked",
        _large_scores,
    ),
    Check("softcap", "scores become c·tanh(scores/c), after the scale", _softcap),
    Check(
        "softcap and mask",
        "the mask comes after the softcap, which would let it through",
        _softcap_and_mask,
    ),
    Check(
        "softcap of large scores",
        "scores of 400 times the cap are finite: no ratio of exponentials",
        _softcap_of_large_scores,
    ),
    Check("sinks", "a logit of each head joins the softmax, not scaled", _sinks),
    Check("sinks and softcap", "nor capped", _sinks_and_softcap),
    Check(
        "unseen queries",
        "a query that sees no key gives zeros, not NaN and not a mean of values",
        _unseen_queries,
    ),
    Check(
        "long sums",
        "in bfloat16 too, 40 000 equal weights add up: a sum in bfloat16 stops at 256",
        _long_sums,
    ),
)
