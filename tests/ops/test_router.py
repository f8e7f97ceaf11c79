"""The router picks, weighs and counts as its formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import router

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 5)), jnp.float32)
SCALE = jnp.asarray([1.0, 0.5, 2.0, 1.5, 0.1])


def test_weights_are_the_largest_probabilities_renormalised_and_scaled():
    routing = router.route(LOGITS, 2, SCALE)
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for b, t in np.ndindex(2, 7):
        first, second = np.argsort(-probs[b, t])[:2]
        assert routing.choice[b, t].tolist() == [first, second]
        share = probs[b, t, [first, second]]
        wanted = share / share.sum() * np.asarray(SCALE)[[first, second]]
        np.testing.assert_allclose(routing.weights[b, t], wanted, rtol=1e-5)


def test_equal_logits_choose_the_first_experts():
    routing = router.route(jnp.zeros((1, 3, 5)), 2, SCALE)
    assert routing.choice.tolist() == [[[0, 1]] * 3]


def test_sums_count_only_the_tokens_that_count():
    counted = jnp.asarray(np.random.default_rng(1).random((2, 7)) < 0.6)
    routing = router.route(LOGITS, 2, SCALE)
    sums = router.sums(LOGITS, routing, counted)
    kept = np.asarray(counted)
    assert sums.tokens == kept.sum()
    chosen = np.bincount(np.asarray(routing.choice)[kept].ravel(), minlength=5)
    np.testing.assert_array_equal(sums.chosen, chosen)
    np.testing.assert_allclose(sums.probs, np.asarray(routing.probs)[kept].sum(0), rtol=1e-6)
    z = np.log(np.exp(np.asarray(LOGITS)).sum(-1))[kept]
    np.testing.assert_allclose(sums.z, (z**2).sum(), rtol=1e-5)
    everything = router.sums(LOGITS, routing, None)
    assert everything.tokens == 14
    assert everything.chosen.sum() == 28


def balance(logits, num_active=2):
    sums = router.sums(logits, router.route(logits, num_active, jnp.ones(logits.shape[-1])), None)
    return router.load_balance(router.fractions(sums), sums) / sums.tokens


def test_balance_is_one_when_even_and_grows_to_the_number_of_experts_over_active():
    even = jnp.eye(4)[None] * 1e-3  # each token prefers another expert, all nearly alike
    assert float(balance(even, 1)) == pytest.approx(1, abs=1e-3)
    one = jnp.zeros((1, 6, 4)).at[..., 2].set(30.0)
    assert float(balance(one, 1)) == pytest.approx(4, rel=1e-3)


def test_the_balance_moves_probabilities_away_from_crowded_experts():
    one = jnp.zeros((1, 6, 4)).at[..., 2].set(1.0)
    gradient = jax.grad(lambda logits: balance(logits, 1))(one)
    assert (np.asarray(gradient[..., 2]) > 0).all()
    assert (np.asarray(gradient[..., :2]) < 0).all()
