"""Recurrent mixers equal transformers' with the same weights: results and every gradient.

transformers reads one document after the other, ours all of them packed into one row, longer than
a chunk. Weights and gradients of transformers are brought into our layout by the same function.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid import experiment
from hybrid.model.mixers.protocol import Placement
from hybrid.model.pattern import plan_layers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

WIDTH, HEADS, HEAD_DIM, GROUPS, STATE_DIM = 16, 4, 8, 2, 5
DOCUMENTS = (70, 1, 67)  # tokens


# --- Mamba-2 ---------------------------------------------------------------------------------


def mamba2():
    """transformers' mixer, and what it gives for one document."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=WIDTH,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        state_size=STATE_DIM,
        n_groups=GROUPS,
        expand=2,
        chunk_size=32,
        layer_norm_epsilon=1e-6,
        num_hidden_layers=1,
    )
    mixer = Mamba2Mixer(config, layer_idx=0)
    return mixer, mixer


def mamba2_in_our_layout(theirs):
    """transformers' arrays by name -> ours."""
    inner = HEADS * HEAD_DIM
    shared = 2 * GROUPS * STATE_DIM
    gate, x, bc, dt = np.split(
        theirs["in_proj.weight"].T, np.cumsum([inner, inner, shared]), axis=1
    )
    kernel, bias = theirs["conv1d.weight"][:, 0].T, theirs["conv1d.bias"]
    return {
        "gate_proj": {"kernel": gate.reshape(WIDTH, HEADS, HEAD_DIM)},
        "x_proj": {"kernel": x.reshape(WIDTH, HEADS, HEAD_DIM)},
        "bc_proj": {"kernel": bc.reshape(WIDTH, 2, GROUPS, STATE_DIM)},
        "dt_proj": {"kernel": dt},
        "x_conv": {"kernel": kernel[:, :inner], "bias": bias[:inner]},
        "bc_conv": {"kernel": kernel[:, inner:], "bias": bias[inner:]},
        "a_log": theirs["A_log"],
        "dt_bias": theirs["dt_bias"],
        "skip": theirs["D"],
        "norm": {"scale": theirs["norm.weight"]},
        "out_proj": {"kernel": theirs["out_proj.weight"].T.reshape(HEADS, HEAD_DIM, WIDTH)},
    }


# --- RG-LRU ----------------------------------------------------------------------------------


def rg_lru():
    """transformers' recurrent block, the biases of its projections (ours have none) at zero."""
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaRecurrentBlock,
    )

    config = RecurrentGemmaConfig(
        hidden_size=WIDTH, lru_width=24, num_attention_heads=HEADS, num_hidden_layers=1
    )
    block = RecurrentGemmaRecurrentBlock(config, layer_idx=0)

    def run(x):
        positions = torch.arange(x.shape[1])[None]
        return block(x, positions, None, use_cache=False)[0]

    return block, run


def rg_lru_in_our_layout(theirs):
    """transformers' arrays by name -> ours."""

    def gate(name):
        bias = theirs[f"rg_lru.{name}_gate_bias"].reshape(-1)
        return {"kernel": theirs[f"rg_lru.{name}_gate_weight"], "bias": bias}

    return {
        "x_proj": {"kernel": theirs["linear_x.weight"].T},
        "gate_proj": {"kernel": theirs["linear_y.weight"].T},
        "conv": {"kernel": theirs["conv_1d.weight"][:, 0].T, "bias": theirs["conv_1d.bias"]},
        "recurrence_gate": gate("recurrent"),
        "input_gate": gate("input"),
        "decay": theirs["rg_lru.recurrent_param"],
        "out_proj": {"kernel": theirs["linear_out.weight"].T},
    }


# --- Both ------------------------------------------------------------------------------------

# letter -> keys of the mixer, transformers' module and what it runs as, its arrays in our layout
PEERS = {
    "M": (
        {"mamba2": {"head_dim": HEAD_DIM, "state_dim": STATE_DIM, "num_groups": GROUPS}},
        mamba2,
        mamba2_in_our_layout,
    ),
    "R": ({"rg_lru": {"width": 24}}, rg_lru, rg_lru_in_our_layout),
}


def noised(module):
    """Every parameter off its start, those of absent counterparts at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("linear") and name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=0.4)


def theirs_of(letter, x, weight):
    """Result, gradient of x, weights and their gradients of transformers, documents one by one."""
    _, make, in_our_layout = PEERS[letter]
    module, run = make()
    noised(module)
    x = torch.tensor(x, requires_grad=True)
    parts = [run(part) for part in torch.split(x, DOCUMENTS, dim=1)]
    y = torch.cat(parts, dim=1)
    (y * torch.tensor(weight)).sum().backward()
    parameters = dict(module.named_parameters())
    weights = {name: p.detach().numpy() for name, p in parameters.items()}
    gradients = {name: p.grad.numpy() for name, p in parameters.items()}
    return y.detach().numpy(), x.grad.numpy(), in_our_layout(weights), in_our_layout(gradients)


def ours_of(letter, x, weight, params):
    """The same of ours, the documents packed."""
    keys = {"pattern": letter, "last_layer": "any", "num_layers": 1, "d_model": WIDTH}
    keys |= {"num_heads": HEADS} | PEERS[letter][0]
    config = experiment.from_config({"model": keys}).model
    (spec,) = plan_layers(config).mixers()
    graph, state = nnx.split(spec.build(config, nnx.Rngs(0)))
    assert jax.tree.structure(nnx.to_pure_dict(state)) == jax.tree.structure(params)
    positions = np.concatenate([np.arange(length) for length in DOCUMENTS])
    segments = np.repeat(np.arange(len(DOCUMENTS)), DOCUMENTS)
    rows = (jnp.asarray(np.tile(each, (len(x), 1)), jnp.int32) for each in (positions, segments))
    placement = Placement(*rows, {})

    def loss(params, x):
        y = nnx.merge(graph, nnx.State(params))(x, placement)[0]
        return jnp.sum(y * weight), y

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, y), (gradients, dx) = run(params, jnp.asarray(x))
    return y, dx, gradients


@pytest.mark.parametrize("letter", PEERS)
def test_results_and_gradients_equal_transformers(letter):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 2, sum(DOCUMENTS), WIDTH)).astype(np.float32)
    y, dx, params, gradients = theirs_of(letter, x, weight)
    ours, our_dx, our_gradients = ours_of(letter, x, weight, jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(ours, y, atol=1e-4 * np.abs(y).max())
    np.testing.assert_allclose(our_dx, dx, atol=1e-3 * np.abs(dx).max())
    by_path = dict(jax.tree.leaves_with_path(our_gradients))
    for path, leaf in jax.tree.leaves_with_path(gradients):
        name, atol = jax.tree_util.keystr(path), 1e-3 * np.abs(leaf).max()
        np.testing.assert_allclose(by_path[path], leaf, atol=atol, err_msg=name)
