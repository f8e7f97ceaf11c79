"""Which tokens may be drawn, how often, and that a row's draws are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.config import ConfigError
from hybrid.inference.sampling import Sampling, filtered, row_keys, sample

LOGITS = np.log([[0.05, 0.4, 0.25, 0.2, 0.1]]).astype(np.float32)


def left(**settings):
    """The tokens that the filters leave of LOGITS."""
    how = Sampling(temperature=settings.pop("temperature", 1.0), **settings)
    kept = filtered(jnp.asarray(LOGITS), how.kind, how.numbers())[0]
    return set(np.flatnonzero(np.isfinite(kept)).tolist())


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.1}, {1}),
        ({"top_p": 0.6}, {1, 2}),
        ({"top_p": 0.7}, {1, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.3}, {1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        # Of 0.4, 0.25 and 0.2 renormalised to 0.47, 0.29 and 0.24, two reach 0.7.
        ({"top_k": 3, "top_p": 0.7}, {1, 2}),
        ({"top_k": 3, "min_p": 0.6}, {1, 2}),
        # At temperature 0.5 probabilities are squared: 0.59 of the mass is token 1's.
        ({"temperature": 0.5, "top_p": 0.55}, {1}),
    ],
)
def test_filters_leave_the_right_tokens(settings, tokens):
    assert left(**settings) == tokens


def test_temperature_divides_and_filters_keep_the_rest_as_it_is():
    how = Sampling(temperature=2.0, top_k=2)
    kept = filtered(jnp.asarray(LOGITS), how.kind, how.numbers())[0]
    np.testing.assert_allclose(kept[1] - kept[2], (LOGITS[0, 1] - LOGITS[0, 2]) / 2, rtol=1e-6)
    assert kept[1] == 0


TEMPERATURES = [5e-324, 1e-300, 1e-45, 1e-39, 1e-30, 1e-8, 1e-3, 0.7, 1e3, 1e30, 1e39, 1e308]


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 1e-30}])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_any_temperature_above_0_gives_its_distribution(filters, scale):
    """Against float64: a tiny one takes the likeliest, a huge one draws uniformly."""
    for seed, temperature in enumerate(TEMPERATURES):
        logits = scale * np.random.default_rng(seed).normal(size=(1, 6)).astype(np.float32)
        how = Sampling(temperature=temperature, **filters)
        kept = filtered(jnp.asarray(logits), how.kind, how.numbers())
        found = np.asarray(jax.nn.softmax(kept, axis=-1))[0]
        wanted = np.exp((logits.astype(np.float64)[0] - logits.max()) / max(temperature, 1e-300))
        wanted = np.where(found > 0, wanted, 0)  # what a filter leaves out is tested above
        np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-4)
        assert found[logits.argmax()] > 0
        drawn = sample(
            jnp.asarray(logits), row_keys(seed, 1), jnp.zeros(1, int), how.kind, how.numbers()
        )
        assert found[int(drawn[0])] > 0


def test_a_top_k_beyond_any_vocabulary_leaves_all():
    assert left(top_k=10**30) == {0, 1, 2, 3, 4}


def test_greedy_takes_the_first_of_the_largest():
    logits = jnp.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    token = sample(logits, row_keys(0, 2), jnp.zeros(2, int), "greedy", {})
    assert token.tolist() == [1, 0]


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}])
def test_tokens_come_as_often_as_the_distribution_says(settings):
    how, count = Sampling(temperature=1.0, **settings), 20_000
    logits = jnp.broadcast_to(jnp.asarray(LOGITS), (count, 5))
    drawn = sample(logits, row_keys(1, count), jnp.zeros(count, int), how.kind, how.numbers())
    wanted = np.exp(np.asarray(filtered(jnp.asarray(LOGITS), how.kind, how.numbers())[0]))
    wanted /= wanted.sum()
    found = np.bincount(np.asarray(drawn), minlength=5) / count
    assert np.all(found[wanted == 0] == 0)
    # Four standard deviations of a share.
    assert np.all(np.abs(found - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / count))


def test_a_rows_draw_depends_on_its_seed_and_position_alone():
    how = Sampling(temperature=1.0)
    logits = jax.random.normal(jax.random.key(0), (4, 50))

    def draw(rows, keys, positions):
        return sample(logits[rows], keys, positions, how.kind, how.numbers()).tolist()

    rows, positions = jnp.arange(4), jnp.array([7, 7, 8, 9])
    together = draw(rows, row_keys(3, 4), positions)
    for row in range(4):
        assert draw(
            rows[row : row + 1], row_keys(3, 4)[row : row + 1], positions[row : row + 1]
        ) == [together[row]]
    one = jnp.zeros(40, int)
    assert len(set(draw(one, row_keys(3, 40), one))) > 5, "rows of one batch draw alike"
    same = row_keys(jnp.full(40, 3), 40)
    assert len(set(draw(one, same, one))) == 1
    assert len(set(draw(one, same, jnp.arange(40)))) > 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError) as error:
        Sampling(**{name: value})
    assert error.value.key == name
