"""Parameters by path: round trips, one layer of a stack, and which of them are matrices."""

import jax
import numpy as np
import pytest

from hybrid import model
from hybrid.model import stack
from hybrid.model.config import ModelConfig
from hybrid.model.params import flat, is_matrix, layer_params, nested, param_name

SMALL = {"num_layers": 7, "window_size": 4, "d_model": 16, "num_heads": 4, "num_kv_heads": 2}
SMALL |= {"head_dim": 8, "ffn_dim": 24, "vocab_size": 32, "pattern": "LLG"}
KINDS = {
    "plain": {},
    "no norms of queries, no scalars": {"qk_norm": False, "v_norm": False, "layer_scalar": "none"},
    "sinks": {"attention_sinks": True},
    "unified and shared": {"unified_kv": True, "num_kv_shared_layers": 2},
    "experts": {"num_experts": 3, "num_active_experts": 2, "expert_dim": 8},
    "per-layer embeddings": {"layer_embedding_dim": 4},
}


def small(**keys):
    return ModelConfig(**{**SMALL, "last_layer": "force_global", **keys})


def test_paths_and_back_give_the_same_tree():
    params = model.abstract(small())
    leaves = flat(params)
    assert {("embedder", "embedding"), ("segments", 0, 0, "mixer", "q_proj", "kernel")} <= set(
        leaves
    )
    assert param_name(("segments", 0, 5, "mixer")) == "segments/0/5/mixer"
    assert nested(leaves) == params
    assert list(leaves.values()) == jax.tree.leaves(params)


def test_a_layer_is_what_an_unrolled_plan_has_there():
    config = small()
    params, plan = model.init(config, jax.random.key(0)), model.layer_plan(config)
    cut = {"segments": stack.unrolled(plan, params["segments"])}
    for depth in range(config.num_layers):
        layer = layer_params(plan, params, depth)
        jax.tree.map(
            np.testing.assert_array_equal, layer, layer_params(plan.unrolled(), cut, depth)
        )
    assert layer_params(plan, params, config.num_layers) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_the_kernels_and_embeddings_of_every_kind_of_model(kind):
    axes = flat(model.logical_axes(small(**KINDS[kind])))
    matrices = {path for path, names in axes.items() if is_matrix(names)}
    assert matrices == {path for path in axes if path[-1] in ("kernel", "embedding")}
