"""Cross-entropy in blocks: values and gradients (3) to (5) against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.loss import FEWEST_ROWS, LOGIT_BYTES, cross_entropy, default_block_size, score


def data(batch=2, time=11, width=8, vocab_size=33, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(batch, time, width)), dtype)
    embedding = jnp.asarray(rng.normal(size=(vocab_size, width)), dtype)
    targets = jnp.asarray(rng.integers(0, vocab_size, (batch, time)), jnp.int32)
    return hidden, embedding, targets, jnp.asarray(rng.random((batch, time)) < 0.6)


def plain(hidden, embedding, targets, softcap):
    logits = hidden @ embedding.T
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return log_sum - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], log_sum


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("block_size", [0, 1, 4, 11, 50])
@pytest.mark.parametrize("remat", [False, True])
def test_sums_and_gradients_equal_the_dense_loss(softcap, block_size, remat, x64):
    hidden, embedding, targets, mask = data()

    def ours(hidden, embedding):
        options = {"softcap": softcap, "block_size": block_size}
        sums = cross_entropy(hidden, embedding, targets, mask, **options)
        assert sums.count.dtype == jnp.int32
        return 1.3 * sums.nll + 0.1 * sums.z

    def dense(hidden, embedding):
        nll, log_sum = plain(hidden, embedding, targets, softcap)
        return jnp.sum(jnp.where(mask, 1.3 * nll + 0.1 * log_sum**2, 0))

    ours = jax.checkpoint(ours) if remat else ours
    got, gradients = jax.value_and_grad(ours, (0, 1))(hidden, embedding)
    wanted, plain_gradients = jax.value_and_grad(dense, (0, 1))(hidden, embedding)
    np.testing.assert_allclose(got, wanted, rtol=1e-13)
    for a, b in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_count_is_the_number_of_tokens_kept_and_others_have_no_say(x64):
    hidden, embedding, targets, mask = data()
    sums = cross_entropy(hidden, embedding, targets, mask)
    assert sums.count == np.asarray(mask).sum()
    changed = jnp.where(mask[..., None], hidden, 1e3)
    assert cross_entropy(changed, embedding, targets, mask).nll == sums.nll
    gradient = jax.grad(lambda h: cross_entropy(h, embedding, targets, mask).nll)(hidden)
    np.testing.assert_array_equal(np.asarray(gradient).any(-1), mask)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("with_top", [False, True])
def test_scores_of_tokens_sum_to_the_loss(softcap, with_top, x64):
    hidden, embedding, targets, mask = data()
    options = {"softcap": softcap, "with_top": with_top, "block_size": 4}
    nll, is_top = score(hidden, embedding, targets, mask, **options)
    dense = jnp.where(mask, plain(hidden, embedding, targets, softcap)[0], 0)
    np.testing.assert_allclose(nll, dense, rtol=1e-12)
    sums = cross_entropy(hidden, embedding, targets, mask, softcap=softcap)
    np.testing.assert_allclose(jnp.sum(nll), sums.nll, rtol=1e-13)
    top = jnp.argmax(hidden @ embedding.T, axis=-1) == targets
    assert (is_top is None) if not with_top else (is_top == (top & mask)).all()


@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_large_logits_stay_finite(softcap):
    hidden, embedding, targets, mask = data(dtype=jnp.float32)
    sums = cross_entropy(300 * hidden, embedding, targets, mask, softcap=softcap)
    wanted = plain(300 * hidden, embedding, targets, softcap)[0]
    np.testing.assert_allclose(sums.nll, jnp.sum(jnp.where(mask, wanted, 0)), rtol=1e-5)


def test_logits_of_bfloat16_streams_are_float32():
    hidden, embedding, targets, mask = data(dtype=jnp.bfloat16)
    sums, pull = jax.vjp(lambda h, e: cross_entropy(h, e, targets, mask)[:2], hidden, embedding)
    assert sums[0].dtype == jnp.float32
    wide = plain(hidden.astype(jnp.float32), embedding.astype(jnp.float32), targets, 0.0)[0]
    np.testing.assert_allclose(sums[0], jnp.sum(jnp.where(mask, wide, 0)), rtol=1e-5)
    assert [g.dtype for g in pull((jnp.float32(1), jnp.float32(0)))] == [jnp.bfloat16] * 2


def test_a_block_of_logits_stays_small():
    for num_tokens, vocab_size in ((4096, 262_144), (8192, 262_208), (2048, 1024), (800, 100_003)):
        size = default_block_size(num_tokens, vocab_size)
        assert 1 <= size <= vocab_size
        assert size <= FEWEST_ROWS or 4 * num_tokens * size <= LOGIT_BYTES
    assert default_block_size(2048, 1024) == 1024
    assert default_block_size(8192, 262_144) == 2048
    assert 262_208 % default_block_size(8192, 262_208) == 0
    assert default_block_size(131_072, 262_144) == FEWEST_ROWS


def test_gemmas_vocabulary_never_holds_all_logits():
    time, vocab_size = 2048, 262_144
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, time, 8), (vocab_size, 8))]
    ids = jax.ShapeDtypeStruct((1, time), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, time), jnp.bool_)
    both = jax.jit(jax.grad(lambda h, e, t, m: cross_entropy(h, e, t, m).nll, (0, 1)))
    used = both.lower(*shapes, ids, mask).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * LOGIT_BYTES < 4 * time * vocab_size
