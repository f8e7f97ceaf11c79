"""Gradients of weights before the stream's: the same numbers, and none for what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.backward_order import weights_first

X = jax.random.normal(jax.random.key(0), (1, 2, 4))
WEIGHTS = {
    name: jax.random.normal(jax.random.key(seed), (3, 4, 4))
    for seed, name in enumerate(("inner", "outer"))
}


def layers(trained, frozen, x, order):
    """Three layers in a scan, rematerialised."""

    def layer(x, weights):
        if order:
            weights, x = weights_first(weights, x)
        return x + jnp.tanh(x @ weights["inner"]) @ weights["outer"], None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, trained | frozen)[0])


def products(trained, frozen):
    """Matrix products of the compiled gradient."""
    gradient = jax.grad(layers, (0, 2))
    text = jax.jit(gradient, static_argnums=3).lower(trained, frozen, X, True).compile().as_text()
    return text.count(" dot(")


@pytest.mark.parametrize("frozen", [(), ("inner",), ("inner", "outer")])
def test_gradients_are_those_without_an_order(frozen):
    parts = (
        {n: w for n, w in WEIGHTS.items() if (n in frozen) == which} for which in (False, True)
    )
    trained, frozen = parts
    value = jax.value_and_grad(layers, (0, 2))
    jax.tree.map(
        np.testing.assert_allclose,
        value(trained, frozen, X, True),
        value(trained, frozen, X, False),
    )


def test_frozen_weights_cost_no_gradient():
    both, one, none = (
        products(
            {n: WEIGHTS[n] for n in names}, {n: w for n, w in WEIGHTS.items() if n not in names}
        )
        for names in (("inner", "outer"), ("outer",), ())
    )
    assert both == one + 1 == none + 2


def test_the_stream_waits_for_the_gradients_of_trained_weights_alone():
    text = (
        jax.jit(jax.grad(layers, (0, 2)), static_argnums=3)
        .lower({"outer": WEIGHTS["outer"]}, {"inner": WEIGHTS["inner"]}, X, True)
        .as_text()
    )
    barriers = [line for line in text.splitlines() if "optimization_barrier" in line]
    types = [line.rpartition(":")[2].split(",") for line in barriers]
    assert ["tensor<4x4xf32>", "tensor<1x2x4xf32>"] in [[t.strip() for t in line] for line in types]
