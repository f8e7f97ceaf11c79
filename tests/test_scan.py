"""Scan and loop are two readings of one plan: equal numbers, and a traced size without depth."""

import collections
import contextlib
import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.model.config import ModelConfig
from hybrid.ops import dispatch

TINY = ModelConfig(
    pattern="LG",
    num_layers=5,
    last_layer="force_global",
    window_size=5,
    d_model=16,
    num_heads=2,
    head_dim=8,
    global_head_dim=12,
    unified_kv=True,
    ffn_dim=24,
    vocab_size=32,
    dtype="float64",
    logit_softcap=0.0,
)
PLANS = {
    "a scanned segment and a tail forced global": {},
    "one segment of one letter": {"pattern": "L", "num_layers": 3, "last_layer": "any"},
    "keys and values reused from inside a period, layers with embeddings of their own": {
        "pattern": "LLG",
        "num_layers": 12,
        "num_kv_shared_layers": 7,
        "kv_shared_ffn_dim": 20,
        "layer_embedding_dim": 6,
    },
    "no norms of queries and keys, offset norms, sinks": {
        "unified_kv": False,
        "qk_norm": False,
        "v_norm": False,
        "norm_offset": 1.0,
        "layer_scalar": "none",
        "attention_scale": 0.5,
        "attention_sinks": True,
    },
    "experts": {
        "pattern": "LLG",
        "num_layers": 6,
        "num_experts": 4,
        "num_active_experts": 2,
        "expert_dim": 10,
    },
}


DOTS = ("a scanned segment and a tail forced global", "experts")


def batch(rows=2, time=12):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 32, (rows, time + 1)), jnp.int32)
    segments = jnp.asarray(np.repeat([[1, 2]], time // 2, axis=1).repeat(rows, axis=0), jnp.int32)
    positions = jnp.tile(jnp.arange(time // 2, dtype=jnp.int32), (rows, 2))
    mask = jnp.asarray(rng.random((rows, time)) < 0.8)
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, mask)


def loss(config, params, batch):
    return model.loss_sums(config, params, batch).nll


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(config, params, batch):
    return jax.value_and_grad(functools.partial(loss, config))(params, batch)


def random_params(config):
    """Values for every leaf, norms and scalars included, without compiling an initialisation."""
    rng = np.random.default_rng(1)

    def values(leaf):
        noise = rng.standard_normal(leaf.shape)
        is_scale = len(leaf.shape) < 3 and leaf.shape != (config.vocab_size, config.d_model)
        return jnp.asarray(1 + 0.3 * noise if is_scale else 0.3 * noise, leaf.dtype)

    return jax.tree.map(values, model.abstract(config))


def assert_same(first, second):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        scale = max(np.abs(a).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * scale, err_msg=str(path))


@functools.cache
def scanned(**change):
    config = dataclasses.replace(TINY, **change)
    return loss_and_gradients(config, random_params(config), batch())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
def test_scan_equals_loop(change):
    config = dataclasses.replace(TINY, **change)
    params = random_params(config)
    looped = loss_and_gradients(dataclasses.replace(config, unroll=True), params, batch())
    assert_same(scanned(**change), looped)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(looped[1]["segments"][0][0]["mixer"]))


# --- Size of the traced program --------------------------------------------------------------


def traced_size(config) -> int:
    """Equations of the traced loss and gradient, those of inner programs included."""
    step = jax.grad(functools.partial(loss, config))
    return equations(jax.make_jaxpr(step)(model.abstract(config), batch()).jaxpr)


def equations(jaxpr) -> int:
    inner = (
        equations(value.jaxpr if hasattr(value, "jaxpr") else value)
        for equation in jaxpr.eqns
        for parameter in equation.params.values()
        for value in (parameter if isinstance(parameter, tuple | list) else [parameter])
        if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    )
    return len(jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_traced_program_does_not_grow_with_depth(remat):
    config = dataclasses.replace(TINY, dtype="float32", pattern="LLLLLG", remat=remat)
    shallow, deep = (dataclasses.replace(config, num_layers=n) for n in (12, 60))
    assert traced_size(shallow) == traced_size(deep)


def test_equal_layers_of_a_period_are_traced_once_where_they_are_rematerialised():
    config = dataclasses.replace(TINY, dtype="float32", num_layers=12, remat="full")
    two, five = (dataclasses.replace(config, pattern=p) for p in ("LLG", "LLLLLG"))
    # Beyond the layers, leaves are stacked and taken apart by slot.
    assert traced_size(five) - traced_size(two) < 0.2 * traced_size(two)


def test_a_loop_does_grow_with_depth():
    config = dataclasses.replace(TINY, dtype="float32", unroll=True)
    shallow, deep = (dataclasses.replace(config, num_layers=n) for n in (2, 4))
    assert traced_size(deep) > 1.5 * traced_size(shallow)


# --- Rematerialisation -----------------------------------------------------------------------


@functools.cache
def kept(remat: str, *names: str) -> collections.Counter[str]:
    """Types of what the backward of two unrolled layers keeps, arguments and constants aside."""
    change = {"pattern": "L", "last_layer": "any", "num_layers": 2, "unroll": True}
    config = dataclasses.replace(TINY, dtype="float32", remat=remat, remat_save=names, **change)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.abstract(config))
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_saved_residuals(functools.partial(loss, config), params, batch())
    lines = text.getvalue().splitlines()
    results = (line for line in lines if " output of " in line or " named " in line)
    return collections.Counter(line.split()[0] for line in results)


def test_full_keeps_the_input_of_each_layer_alone():
    wide = {"f32[2,12,2,8]", "f32[2,12,1,8]", "f32[2,12,24]"}  # queries, keys, feed-forward
    assert not wide & kept("full").keys()
    assert kept("full")["f32[2,12,16]"] == 2 + 2  # two layers; the final norm and the loss


def test_dots_keeps_the_results_of_weight_products_besides():
    products = {
        "f32[2,12,2,8]": 1,  # queries
        "f32[2,12,1,8]": 2,  # keys, values
        "f32[2,12,16]": 2,  # both outputs
        "f32[2,12,24]": 2,  # gate, up
    }
    of_two_layers = collections.Counter({shape: 2 * count for shape, count in products.items()})
    assert kept("dots") - kept("full") == of_two_layers
    assert kept("full") <= kept("dots") < kept("none")


def test_names_are_kept_besides():
    def more(remat, *names):
        return kept(remat, *names) - kept(remat)

    # Of two layers: queries, keys and values; attention's result and its sums; its one input.
    assert more("full", "qkv") == {"f32[2,12,2,8]": 2, "f32[2,12,1,8]": 4}
    assert more("full", "attention_out") == {"f32[2,12,2,8]": 2, "f32[2,12,2]": 2}
    assert more("full", "ffn_in") == {"f32[2,12,16]": 2}
    assert more("dots", "attention_out") == more("full", "attention_out")
    assert not more("dots", "qkv")  # they are products of weights


def test_what_is_kept_of_attention_saves_its_forward_kernel():
    def kernels(**change):
        config = dataclasses.replace(TINY, dtype="float32", pattern="L", last_layer="any", **change)
        config = dataclasses.replace(config, num_layers=1)
        with dispatch.use_backend("tpu"):
            gradient = jax.make_jaxpr(jax.grad(functools.partial(loss, config)))
            text = str(gradient(model.abstract(config), batch()))
        return text.count("pallas_call[") // 2  # one for TPUs, one that is interpreted

    assert kernels(remat="none") == 2
    assert kernels(remat="full") == 3
    assert kernels(remat="full", remat_save=("attention_out",)) == 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("key", ["remat_save", "remat_offload"])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_names_keep_loss_and_gradients(remat, key):
    change = PLANS["a scanned segment and a tail forced global"]
    config = dataclasses.replace(TINY, **change, remat=remat, **{key: ("qkv", "attention_out")})
    assert_same(scanned(**change), loss_and_gradients(config, random_params(config), batch()))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("plan", "remat"), [*((name, "full") for name in PLANS), *((n, "dots") for n in DOTS)]
)
def test_rematerialisation_keeps_loss_and_gradients(plan, remat):
    change = PLANS[plan]
    config = dataclasses.replace(TINY, **change, remat=remat)
    assert_same(scanned(**change), loss_and_gradients(config, random_params(config), batch()))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", ["none", "full"])
def test_donors_feel_the_layers_that_reuse_their_keys_and_values(remat):
    (change,) = (change for name, change in PLANS.items() if name.startswith("keys and values"))
    config = dataclasses.replace(TINY, **change, remat=remat)
    plan, params = model.layer_plan(config), random_params(config)
    gradient = loss_and_gradients(config, params, batch())[1]
    assert [layer for layer, spec in enumerate(plan.layers()) if spec.mixer.donates] == [2, 4]
    for layer, name in ((2, "k_proj"), (2, "k_norm"), (4, "k_proj"), (4, "v_proj"), (4, "k_norm")):
        where = plan.locate(layer)
        up, down = (
            loss_and_gradients(config, moved(params, where, name, by), batch())[0]
            for by in (1e-6, -1e-6)
        )
        (total,) = map(jnp.sum, jax.tree.leaves(mixer_at(gradient, where)[name]))
        np.testing.assert_allclose(
            total, (up - down) / 2e-6, rtol=1e-5, err_msg=f"layer {layer}, {name}"
        )


def mixer_at(tree, where):
    return tree["segments"][where.segment][where.run]["mixer"]


def moved(params, where, name, by):
    """`params` with `by` added to all of one leaf; a donor's segment has one repetition."""
    there = jax.tree.map(jnp.asarray, params)
    mixer = mixer_at(there, where)
    mixer[name] = jax.tree.map(lambda leaf: leaf + by, mixer[name])
    return there
