"""Rotary positions against complex multiplication; p-RoPE turns the fastest pairs only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import rope


def rotate(x, positions, **options):
    """x turned by the angles of `positions`, in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return rope.apply(x, rope.rotation(positions, x.shape[-1], dtype=wide, **options))


def turned(x, positions, theta, pairs, factor):
    """Pair (i, i + h/2) as a complex number times exp(i·angle); the other pairs stay."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-2.0 * np.arange(half) / x.shape[-1]) / factor
    frequencies[pairs:] = 0
    turn = np.exp(1j * positions[:, :, None, None] * frequencies)
    out = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([out.real, out.imag], axis=-1)


@pytest.mark.parametrize(
    ("head_dim", "fraction", "pairs"),
    [(16, 1.0, 8), (16, 0.25, 2), (512, 0.25, 64), (10, 0.334, 1), (16, 0.0, 0)],
)
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_turns_the_first_pairs_at_the_frequencies_of_the_full_head(
    head_dim, fraction, pairs, factor, x64
):
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 7, 3, head_dim)), rng.integers(0, 5000, (2, 7))
    got = rotate(
        jnp.asarray(x),
        jnp.asarray(positions, jnp.int32),
        theta=1e4,
        fraction=fraction,
        factor=factor,
    )
    np.testing.assert_allclose(got, turned(x, positions, 1e4, pairs, factor), atol=1e-10)


def test_scores_depend_on_distance_alone(x64):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 64))) for _ in range(2))

    def score(query, key):
        at = [jnp.full((1, 1), position, jnp.int32) for position in (query, key)]
        return jnp.sum(rotate(q, at[0], theta=1e4) * rotate(k, at[1], theta=1e4))

    np.testing.assert_allclose(score(9, 4), score(1009, 1004), atol=1e-10)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_angles_of_bfloat16_streams_are_float32():
    # bfloat16 rounds position 257 to 256: the two would turn alike.
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    out = rotate(x, jnp.asarray([[256, 257]], jnp.int32), theta=1e4)
    assert out.dtype == jnp.bfloat16
    wanted = turned(np.ones((1, 2, 1, 8)), np.array([[256, 257]]), 1e4, 4, 1.0)
    np.testing.assert_allclose(np.asarray(out, float), wanted, atol=0.01)


def test_gradient_turns_back(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 16)))
    positions = jnp.arange(5, dtype=jnp.int32)[None]
    out, pull = jax.vjp(lambda x: rotate(x, positions, theta=1e4, fraction=0.5), x)
    np.testing.assert_allclose(pull(out)[0], x, atol=1e-13)


def test_a_rotation_is_shared_by_queries_and_keys():
    positions = jnp.arange(6, dtype=jnp.int32)[None]
    turn = rope.rotation(positions, 16, theta=1e4)
    for heads in (1, 4):
        x = jnp.ones((1, 6, heads, 16))
        np.testing.assert_array_equal(rope.apply(x, turn), rotate(x, positions, theta=1e4))
