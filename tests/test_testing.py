"""The conformance suite: ours pass it, and each planted mistake fails the check that is for it.

The mistakes are planted in a dense attention in numpy, which compiles nothing.
"""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import conformance
from hybrid.ops.attention import attend
from hybrid.ops.band import Band
from hybrid.testing import CHECKS, AttentionCall, Unsupported, attention_conformance, oracle
from hybrid.testing.call import FEATURES
from hybrid.testing.report import Report, Row


def dense(
    call,
    *,
    mask=None,
    scores_of=lambda call, scores: scores * call.scale,
    softcap_of=lambda softcap: softcap,
    sinks_of=lambda call: call.sinks,
    head_of=lambda head, group: head // group,
    is_masked_first=False,
    unseen=0.0,
    total_of=lambda weights: weights.sum(-1, keepdims=True),
):
    """Attention in numpy, in float64 inside; the arguments are where mistakes are planted."""
    q, k, v = (np.asarray(array, np.float64) for array in (call.q, call.k, call.v))
    group = q.shape[2] // k.shape[2]
    heads = [head_of(head, group) for head in range(q.shape[2])]
    seen = (mask or type(call).visible)(call)[:, None]
    scores = scores_of(call, np.einsum("btnh,bsnh->bnts", q, k[:, :, heads]))
    if is_masked_first:
        scores = np.where(seen, scores, -1e9)
    softcap = softcap_of(call.softcap)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if not is_masked_first:
        scores = np.where(seen, scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    sinks = sinks_of(call)
    if sinks is not None:
        sinks = np.asarray(sinks, np.float64)[:, None, None]
        peak = np.maximum(peak, sinks)
    weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0))
    total = total_of(weights)
    if sinks is not None:
        total = total + np.exp(sinks - peak)
    is_unseen = total == 0
    weights = np.where(is_unseen, unseen, weights / np.where(is_unseen, 1, total))
    return np.einsum("bnts,bsnh->btnh", weights, v[:, :, heads]).astype(call.q.dtype)


def masked(**changes):
    """The mask of a call with some fields changed."""
    return lambda call: dataclasses.replace(call, **changes).visible()


def window(change):
    """The mask of windows that are `change` wider."""

    def mask(call):
        size = call.window_size
        return masked(window_size=size and max(1, size + change))(call)

    return mask


def not_causal(call):
    keys = np.broadcast_to(call.positions()[1], call.k.shape[:2])
    queries = np.full(call.q.shape[:2], keys.max())
    positions = {"q_positions": queries, "kv_positions": keys, "offset": 0}
    return masked(window_size=None, **positions)(call)


def added_in_bfloat16(weights):
    """One after the other, as some kernels do: it stops where a weight is below half a step."""
    if weights.shape[-1] < 1000:
        return weights.sum(-1, keepdims=True)
    return np.add.accumulate(weights.astype(jnp.bfloat16), -1)[..., -1:].astype(np.float64)


# A mistake, the check that is for it, what the check says.
MISTAKES = {
    "the window is one key too wide": (
        {"mask": window(1)},
        "window edge",
        "token 8 sees 9 keys in place of 8, window_size=8: as if window_size were 9",
    ),
    "the window is one key too narrow": (
        {"mask": window(-1)},
        "window edge",
        "token 7 sees 7 keys in place of 8, window_size=8: as if window_size were 7",
    ),
    "the window is dropped": (
        {"mask": masked(window_size=None)},
        "window reach",
        "token 61 depends on token 53, window_size=8",
    ),
    "the mask is dropped": (
        {"mask": lambda call: np.ones((*call.q.shape[:2], call.k.shape[1]), bool)},
        "values",
        "token 0 depends on token 1, which is later: as if it were not causal",
    ),
    "the future is seen": ({"mask": not_causal}, "causality", "token 0 depends on token 22"),
    "segments are ignored": (
        {"mask": masked(q_segments=None, kv_segments=None)},
        "segments",
        "token 21 sees the document before: key 20: as if there were no segments",
    ),
    "queries are aligned to the top left": (
        {"mask": masked(offset=0)},
        "offset",
        "token 0 sees 1 key in place of 38, not key 1: as if the offset were 0 (aligned top left)",
    ),
    "queries are aligned to the last key": (
        {"mask": lambda c: masked(offset=max(0, c.k.shape[1] - c.q.shape[1]))(c)},
        "keys behind",
        "token 0 depends on key 1, which is later: as if the last query were the last key's "
        "(aligned bottom right)",
    ),
    "the scale is left to 1/√h": (
        {"scores_of": lambda call, scores: scores * call.q.shape[3] ** -0.5},
        "scale",
        "as if scores were multiplied by 1/√h",
    ),
    "the scale is applied twice": (
        {"scores_of": lambda call, scores: scores * call.scale**2},
        "scale",
        "as if scores were multiplied by scale²",
    ),
    "the softcap is left out": (
        {"softcap_of": lambda softcap: None},
        "softcap",
        "as if there were no softcap",
    ),
    "the mask comes before the softcap": (
        {"is_masked_first": True},
        "softcap and mask",
        "(only under a softcap: the mask comes before it)",
    ),
    "sinks are ignored": ({"sinks_of": lambda call: None}, "sinks", "as if there were no sinks"),
    "sinks are scaled": (
        {"sinks_of": lambda c: c.sinks if c.sinks is None else c.sinks * c.scale},
        "sinks",
        "as if sinks were scaled",
    ),
    "unseen queries are NaN": (
        {"unseen": np.nan},
        "unseen queries",
        "nan for token 0, which sees no key",
    ),
    "unseen queries see all keys": (
        {"unseen": 1 / 64},
        "unseen queries",
        "the mean of all values for token 0, which sees no key",
    ),
    "sums are in bfloat16": (
        {"total_of": added_in_bfloat16},
        "long sums",
        "equal weights of 40000 keys give 156 in place of 1: sums not in float32",
    ),
    "heads are grouped in turns": (
        {"head_of": lambda head, group: head % 2},
        "grouped heads",
        "query head 1 reads KV head 1 in place of 0",
    ),
}


def details(report, verdict):
    return {row.check: row.detail for row in report.rows if row.verdict == verdict}


def test_an_attention_in_numpy_passes_but_for_gradients():
    report = attention_conformance(dense, arrays="numpy")
    assert report.passed, str(report)
    refused = details(report, "refused")
    assert set(refused) == {name for name in CHECKS if name.startswith("gradients")}
    assert set(refused.values()) == {"numpy has no gradients: give `gradients`"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found_by_the_check_that_is_for_it(mistake):
    fields, check, said = MISTAKES[mistake]
    mistaken = functools.partial(dense, **fields)
    (row,) = attention_conformance(mistaken, arrays="numpy", checks=[check]).rows
    assert row.verdict == "failed"
    assert said in row.detail


@pytest.mark.parametrize(("name", "factor"), [("dq", 0.5), ("dv", 2.0), ("dsinks", 0.0)])
def test_a_wrong_gradient_is_named_with_its_factor(name, factor):
    def gradients(call, dout):
        found = oracle.gradients(call, dout)
        return found | ({name: factor * found[name]} if name in found else {})

    checks = ["gradients", "gradients: sinks"]
    report = attention_conformance(dense, arrays="numpy", gradients=gradients, checks=checks)
    found = details(report, "failed")
    assert found["gradients: sinks"] == f"{name} is {factor:g} times what it should be"
    assert ("gradients" in found) == (name != "dsinks")


def test_a_backward_that_masks_otherwise_than_the_forward_is_found():
    @jax.custom_vjp
    def attention(q, k, v, segments):
        return attend(q, k, v, Band(33, segments, segments), scale=0.125)

    def forward(*arrays):
        return attention(*arrays), arrays

    def backward(kept, dout):
        q, k, v, segments = kept
        call = functools.partial(attend, band=Band(None, segments, segments), scale=0.125)
        return *jax.vjp(call, q, k, v)[1](dout), None

    attention.defvjp(forward, backward)

    def mistaken(call):
        return attention(call.q, call.k, call.v, call.q_segments)

    (row,) = attention_conformance(mistaken, checks=["gradients: window and segments"]).rows
    assert row.detail.endswith("as if there were no window")


def test_what_training_uses_passes_every_check():
    report = attention_conformance(conformance.ours("chunked"))
    assert report.counts["passed"] == len(CHECKS), str(report)


def test_a_refused_part_of_a_check_is_told_beside_what_passed():
    checks = ["values", "causality", "segments", "segments and window"]
    report = attention_conformance(conformance.ours("banded"), checks=checks)
    passed, refused = details(report, "passed"), details(report, "refused")
    assert passed["causality"].startswith("in part, refused: banded: needs a window")
    assert passed["values"] == passed["segments and window"] == ""
    assert list(refused) == ["segments"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_what_training_uses_passes_in_other_dtypes(dtype):
    checks = ["result", "values", "window edge", "gradients"]
    report = attention_conformance(conformance.ours("chunked"), dtype=dtype, checks=checks)
    assert report.counts["passed"] == len(checks), str(report)


def test_what_refuses_everything_has_not_passed():
    def shy(call):
        raise NotImplementedError("needs a GPU\nof some kind")

    report = attention_conformance(shy)
    assert not report.passed
    assert report.summary == f"0 of 0 checks passed, {len(CHECKS)} were refused"
    assert {row.detail for row in report.rows} == {"needs a GPU"}


def test_what_raises_has_failed_and_a_shape_is_told():
    def broken(call):
        raise TypeError("no\nyes")

    (row,) = attention_conformance(broken, checks=["values"]).rows
    assert (row.verdict, row.detail) == ("failed", "raised TypeError: no")
    (row,) = attention_conformance(lambda call: call.q[:, 1:], checks=["values"]).rows
    assert row.detail == "the result is [2, 63, 4, 64], q is [2, 64, 4, 64]"


def test_an_adapter_refuses_by_name_what_it_does_not_serve():
    def plain(call):
        call.need_only("window_size")
        return dense(call)

    report = attention_conformance(plain, arrays="numpy")
    refused = details(report, "refused")
    assert report.passed
    assert refused["segments and window"] == "no segments"
    assert refused["positions"] == "no positions"
    assert refused["unseen queries"] == "no positions; or no segments, own_segments"
    named = set(" ".join(refused.values()).replace(",", "").split())
    assert named >= set(FEATURES) - {"window_size"}
    q = np.zeros((1, 4, 1, 2))
    with pytest.raises(ValueError, match=r"served: \['windows'\] not among window_size, segments"):
        AttentionCall(q, q, q).need_only("windows")


def test_unknown_names_are_refused():
    for arguments, said in (
        ({"arrays": "cupy"}, "arrays: must be one of jax, torch, numpy, got 'cupy'"),
        ({"dtype": "int8"}, "dtype: must be one of float64"),
        ({"checks": ["windows"]}, "checks: no check 'windows'; known: result, values"),
        ({"length": 32}, "length: must be at least 64, got 32"),
    ):
        with pytest.raises(ValueError, match=said):
            attention_conformance(dense, **arguments)


def test_a_report_is_a_table_and_a_value():
    rows = (Row("values", "passed"), Row("scale", "failed", "a|b"), Row("sinks", "refused", "no"))
    report = Report("mine", "float32", rows)
    assert str(report).splitlines()[0] == "mine, float32: 1 of 2 checks passed, 1 were refused"
    assert str(report).splitlines()[-2] == "| scale | failed | a\\|b |"
    value = json.loads(json.dumps(report.to_dict()))
    assert value["counts"] == {"passed": 1, "failed": 1, "refused": 1}
    assert value["passed"] is False
    assert value["rows"][2] == {"check": "sinks", "verdict": "refused", "detail": "no"}


def test_the_suite_is_imported_by_who_names_it_and_brings_no_torch():
    code = (
        "import sys, hybrid; assert 'hybrid.testing' not in sys.modules; "
        "from hybrid.testing import attention_conformance; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_check_says_why():
    assert all(check.reason and "\n" not in check.reason for check in CHECKS.values())
    assert Unsupported.__module__ == "hybrid.ops.dispatch"


def test_the_page_is_that_of_the_results():
    assert conformance.PAGE.read_text() == conformance.page()
