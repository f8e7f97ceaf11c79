"""RMS norm: values and gradients (2) to (4) against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.norm import rms_norm


def plain(x, scale, eps=1e-6, offset=0.0):
    gain = 1 if scale is None else (offset + scale).reshape((1,) * (x.ndim - 1) + scale.shape)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * gain


@pytest.mark.parametrize("shape", [(2, 5, 16), (1, 5, 16), (2, 3, 4, 8), (16,)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_values_and_gradients_follow_the_definition(shape, offset, eps, x64):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    scale = jnp.asarray(rng.normal(size=shape[-1]))
    got, pull = jax.vjp(lambda x, s: rms_norm(x, s, eps=eps, offset=offset), x, scale)
    wanted, pull_plain = jax.vjp(lambda x, s: plain(x, s, eps, offset), x, scale)
    np.testing.assert_allclose(got, wanted, atol=1e-13)
    for a, b in zip(pull(dy), pull_plain(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_no_scale_is_a_weight_of_one(x64):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(2, 5, 16))) for _ in range(2))
    got, pull = jax.vjp(lambda x: rms_norm(x, None), x)
    wanted, pull_plain = jax.vjp(lambda x: plain(x, None), x)
    np.testing.assert_allclose(got, wanted, atol=1e-13)
    np.testing.assert_allclose(pull(dy)[0], pull_plain(dy)[0], atol=1e-13)


def test_bfloat16_is_normed_in_float32_and_weighted_before_the_cast():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1024)), jnp.bfloat16)
    scale = jnp.linspace(0.5, 1.5, 1024)
    got = rms_norm(x, scale)
    assert got.dtype == jnp.bfloat16
    wanted = plain(x.astype(jnp.float32), scale).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got.astype(jnp.float32), wanted.astype(jnp.float32))
