"""A model's parameters start another: what maps, what a rule makes, and what each rule keeps."""

import dataclasses

import jax
import numpy as np
import pytest
from pretrained import tiny_folder

from hybrid import model
from hybrid.config import ConfigError
from hybrid.loading.conversion import FRESH, K_PROJ, V_PROJ, convert
from hybrid.model.config import ModelConfig
from hybrid.model.params import layer_params

HYBRID = ModelConfig(
    pattern="LLG",
    num_layers=6,
    window_size=4,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=24,
    vocab_size=32,
    global_rope_theta=10_000.0,
    global_rope_fraction=1.0,
)
TOKENS = jax.random.randint(jax.random.key(5), (2, 12), 0, 32)


def changed(**keys):
    return dataclasses.replace(HYBRID, **keys)


ALL_GLOBAL = changed(pattern="G")


def params_of(config):
    """Values that differ everywhere, norms included; loud enough to matter, no compiling."""
    return jax.tree.map(lambda leaf: 0.3 * leaf, tiny_folder.params_of(config))


def converted(old, new, key=7):
    return convert(old, params_of(old), new, jax.random.key(key))


def layer_of(config, params, depth):
    return layer_params(model.layer_plan(config), params, depth)


def logits(config, params):
    return model.logits(config, params, TOKENS)


def test_a_model_of_the_same_shapes_is_taken_as_it_is():
    start = params_of(HYBRID)
    for same in (
        changed(window_size=2, global_rope_theta=5e5),
        changed(pattern="LLG", remat="full"),
    ):
        params, report = convert(HYBRID, start, same, jax.random.key(0))
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, params, start)))
        assert report.lines() == [f"{6 * 14 + 2} tensors mapped"]


def test_another_pattern_of_one_geometry_takes_everything():
    params, report = converted(ALL_GLOBAL, HYBRID)
    assert report.made == report.dropped == ()
    for depth in range(6):
        before = layer_of(ALL_GLOBAL, params_of(ALL_GLOBAL), depth)
        after = layer_of(HYBRID, params, depth)
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=f"{depth} {name}")


def test_a_window_over_all_of_the_text_changes_no_logit():
    """The bijection of both plans: a stack converted there and back computes the same."""
    wide = changed(window_size=12)
    params, _ = converted(ALL_GLOBAL, wide)
    np.testing.assert_allclose(
        logits(wide, params), logits(ALL_GLOBAL, params_of(ALL_GLOBAL)), atol=1e-5
    )
    back, _ = convert(wide, params, ALL_GLOBAL, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, back, params_of(ALL_GLOBAL))


def test_one_projection_becomes_two_without_a_change():
    unified = changed(unified_kv=True)
    params, report = converted(unified, HYBRID)
    assert {(name, depth) for name, _, depth in report.made} == {(V_PROJ, 2), (V_PROJ, 5)}
    np.testing.assert_allclose(
        logits(HYBRID, params), logits(unified, params_of(unified)), atol=1e-5
    )


def test_two_projections_become_their_mean():
    unified = changed(unified_kv=True)
    params, report = converted(HYBRID, unified)
    assert {(name, depth) for name, _, depth in report.made} == {(K_PROJ, 2), (K_PROJ, 5)}
    assert report.dropped == ()
    before = layer_of(HYBRID, params_of(HYBRID), 2)
    after = layer_of(unified, params, 2)
    np.testing.assert_allclose(after[K_PROJ], (before[K_PROJ] + before[V_PROJ]) / 2, rtol=1e-6)


def test_repeated_heads_change_no_logit_and_averaging_undoes_it():
    more = changed(num_kv_heads=4)
    params, report = converted(HYBRID, more)
    assert {name for name, _, _ in report.made} == {K_PROJ, V_PROJ}
    np.testing.assert_allclose(logits(more, params), logits(HYBRID, params_of(HYBRID)), atol=1e-5)
    back, _ = convert(more, params, HYBRID, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, params_of(HYBRID))


def test_what_does_not_fit_is_made_as_a_new_model_would_have_it():
    wide = changed(global_head_dim=16)
    params, report = converted(HYBRID, wide)
    made = {name for name, how, depth in report.made if how == FRESH and depth == 2}
    assert made == {
        f"mixer/{name}"
        for name in ("q_proj/kernel", "k_proj/kernel", "v_proj/kernel", "o_proj/kernel")
    } | {"mixer/q_norm/scale", "mixer/k_norm/scale"}
    new = layer_of(wide, model.init(wide, jax.random.key(7)), 2)
    there = layer_of(wide, params, 2)
    for name in made:
        np.testing.assert_array_equal(new[name], there[name])


def test_depth_keys_reused_and_embeddings_of_layers():
    """Layers beyond the old depth are fresh, layers that reuse drop theirs."""
    new = changed(num_layers=9, num_kv_shared_layers=4, layer_embedding_dim=4)
    params, report = converted(HYBRID, new)
    jax.tree.map(lambda a, b: None, params, model.abstract(new))
    assert ("layer_embedder/norm/scale", FRESH, None) in report.made
    assert {depth for _, how, depth in report.made if how == FRESH} >= {6, 7, 8}
    assert {(name, depth) for name, _, depth in report.dropped} == {
        (name, 5) for name in (K_PROJ, V_PROJ, "mixer/k_norm/scale")
    }
    _, report = converted(HYBRID, changed(num_layers=3))
    assert {depth for _, _, depth in report.dropped} == {3, 4, 5}


def test_the_report_groups_layers():
    lines = converted(HYBRID, changed(num_layers=9, num_kv_shared_layers=4))[1].lines()
    assert lines[0] == f"{5 * 14 + 11 + 2} tensors mapped"
    assert "dropped mixer/k_proj/kernel of layer 5" in lines
    assert any(
        line.startswith("made mixer/q_proj/kernel of layers 6 to 8: fresh") for line in lines
    )


@pytest.mark.parametrize("key", ["d_model", "vocab_size", "norm_offset"])
def test_another_width_or_vocabulary_is_refused_by_key(key):
    value = {"d_model": 8, "vocab_size": 40, "norm_offset": 1.0}[key]
    with pytest.raises(ConfigError, match=f"model.{key}: can't be another"):
        converted(HYBRID, changed(**{key: value}))
