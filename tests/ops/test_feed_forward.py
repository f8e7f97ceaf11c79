"""The gated GELU and the dense layer: values and each gradient against plain jnp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import cpu
from hybrid.ops.dense import dense
from hybrid.ops.feed_forward import gated_gelu


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def plain(x, gate, up, down):
    return (jax.nn.gelu(x @ gate, approximate=True) * (x @ up)) @ down


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("pieces", [1, 4])
def test_gated_gelu_equals_autodiff_of_its_definition(batch, remat, pieces, monkeypatch, x64):
    monkeypatch.setattr(cpu, "PIECE_ELEMENTS", batch * 8 * 16 // pieces)
    assert cpu.num_pieces(batch, 8, 16) == pieces
    *inputs, dy = arrays((batch, 8, 6), (6, 16), (6, 16), (16, 6), (batch, 8, 6))
    function = jax.checkpoint(gated_gelu) if remat else gated_gelu
    got, pull = jax.vjp(function, *inputs)
    wanted, pull_plain = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    for name, a, b in zip(("x", "gate", "up", "down"), pull(dy), pull_plain(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11, err_msg=name)


def test_a_row_that_nothing_divides_stays_whole(monkeypatch):
    monkeypatch.setattr(cpu, "PIECE_ELEMENTS", 512)
    assert cpu.num_pieces(1, 97, 16) == 1
    assert cpu.num_pieces(1, 96, 16) == 3


def test_gated_gelu_keeps_the_pre_activations_and_no_more():
    x, gate, up, down = (a.astype(jnp.float32) for a in arrays((2, 5, 6), *[(6, 16)] * 2, (16, 6)))
    pull = jax.vjp(gated_gelu, x, gate, up, down)[1]
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if leaf.ndim == 3]
    assert sorted(kept) == [(2, 5, 6), (2, 5, 16), (2, 5, 16)]


def test_gradients_of_float32_kernels_stay_float32_in_a_bfloat16_stream():
    x, gate, up, down = (a.astype(jnp.float32) for a in arrays((2, 5, 6), *[(6, 16)] * 2, (16, 6)))
    x = x.astype(jnp.bfloat16)
    out, pull = jax.vjp(gated_gelu, x, gate, up, down)
    assert out.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16] + [jnp.float32] * 3


@pytest.mark.parametrize(
    ("x", "kernel", "num_axes", "equation"),
    [
        ((2, 5, 6), (6, 3, 4), 1, "btd,dnh->btnh"),
        ((2, 5, 3, 4), (3, 4, 6), 2, "btnh,nhd->btd"),
        ((2, 5, 6), (6, 7), 1, "btd,df->btf"),
    ],
)
def test_dense_contracts_the_axes_that_meet(x, kernel, num_axes, equation, x64):
    x, kernel = arrays(x, kernel)
    got, pull = jax.vjp(lambda *a: dense(*a, num_axes=num_axes), x, kernel)
    wanted, pull_plain = jax.vjp(lambda *a: jnp.einsum(equation, *a), x, kernel)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    for a, b in zip(pull(got), pull_plain(got), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_dense_refuses_kernels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"kernel: first axes are \(5,\), x ends in \(6,\)"):
        dense(jnp.ones((2, 6)), jnp.ones((5, 3)))
