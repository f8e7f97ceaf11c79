"""The conformance suite on an attention in torch."""

import dataclasses

import pytest

from hybrid.testing import CHECKS, attention_conformance

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


def dense(call):
    """Dense attention whose gradients torch derives."""
    group = call.q.shape[2] // call.k.shape[2]
    k, v = (array.repeat_interleave(group, 2).float() for array in (call.k, call.v))
    seen = torch.from_numpy(call.visible().copy())[:, None]
    scores = torch.einsum("btnh,bsnh->bnts", call.q.float(), k) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~seen, -1e30)
    if call.sinks is not None:
        sinks = call.sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[1]].masked_fill(~seen, 0)
    return torch.einsum("bnts,bsnh->btnh", weights, v).to(call.q.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_attention_in_torch_passes_every_check(dtype):
    report = attention_conformance(dense, arrays="torch", dtype=dtype)
    assert report.counts["passed"] == len(CHECKS), str(report)


def test_a_gradient_that_torch_does_not_have_is_missing():
    def detached(call):
        return dense(dataclasses.replace(call, v=call.v.detach()))

    (row,) = attention_conformance(detached, arrays="torch", checks=["gradients"]).rows
    assert row.detail == "dv is missing"
