"""The delta-rule mixers against transformers and the package rwkv, with equal weights.

Each case maps a tree of our parameters to tensors by their names there. The map is linear, so it
takes gradients across as well.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid import experiment, model
from hybrid.model.mixers.protocol import Placement

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

BATCH, TIME, WIDTH, HEADS, HEAD = 2, 70, 24, 3, 8


class Ours:
    """The mixer of the last layer with weights that differ everywhere, an input and a gradient of
    its output; what the layer is donated is a parameter of that name."""

    def __init__(self, letter, **keys):
        sizes = {"d_model": WIDTH, "num_heads": HEADS, "head_dim": HEAD, "num_layers": 1}
        whole = {"pattern": letter, "last_layer": "any"} | sizes | keys
        config = experiment.from_config({"model": whole}).model
        *_, spec = model.layer_plan(config).layers()
        graph, state = nnx.split(spec.mixer.build(config, nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype),
            nnx.to_pure_dict(state),
        )
        if spec.mixer.donor is not None:
            values = rng.normal(size=(BATCH, TIME, HEADS, HEAD))
            self.params["donated"] = jnp.asarray(values, jnp.float32)
        self.x = jnp.asarray(rng.normal(size=(BATCH, TIME, WIDTH)), jnp.float32)
        self.dy = jnp.asarray(rng.normal(size=(BATCH, TIME, WIDTH)), jnp.float32)
        positions = jnp.tile(jnp.arange(TIME, dtype=jnp.int32), (BATCH, 1))

        def run(params, x):
            weights = {name: value for name, value in params.items() if name != "donated"}
            placement = Placement(positions, None, {})
            return nnx.merge(graph, weights)(x, placement, params.get("donated"))[0]

        self.run = jax.jit(run)

    def gradients(self):
        """Of the parameters and of x."""
        return jax.vjp(self.run, self.params, self.x)[1](self.dy)


def assert_parity(ours, tensors, run):
    """run(x, tensors by name) in torch equals ours, its gradients too."""
    theirs = {name: _torch(value) for name, value in tensors(ours.params).items()}
    x = _torch(ours.x)
    y = run(x, theirs)
    np.testing.assert_allclose(ours.run(ours.params, ours.x), y.detach().numpy(), atol=1e-4)
    y.backward(torch.from_numpy(np.array(ours.dy)))
    dparams, dx = ours.gradients()
    _assert_near("x", dx, x.grad)
    for name, gradient in tensors(dparams).items():
        _assert_near(name, gradient, theirs[name].grad)


def _torch(value):
    return torch.from_numpy(np.array(value)).requires_grad_()


def _assert_near(name, got, wanted):
    wanted = wanted.numpy()
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted), name


def rows(kernel):
    """A kernel [d, ...out] as torch keeps it, [out, d]."""
    return kernel.reshape(kernel.shape[0], -1).T


def output(kernel):
    """A kernel [n, h, d] as torch keeps it, [d, n·h]."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def convolutions(params):
    """Those of q, k and v as one, [c, 1, w]."""
    kernels = [params[f"{name}_conv"]["kernel"] for name in "qkv"]
    return jnp.concatenate(kernels, axis=1).T[:, None]


def called(module):
    """run for a torch module that takes its tensors from a dict."""
    return lambda x, tensors: torch.func.functional_call(module, tensors, (x,))


# --- Gated DeltaNet --------------------------------------------------------------------------


def linear_heads(values):
    """Keys of transformers for `values` heads of values on each of HEADS heads of keys."""
    return {
        "hidden_size": WIDTH,
        "linear_num_key_heads": HEADS,
        "linear_num_value_heads": values * HEADS,
        "linear_key_head_dim": HEAD,
        "linear_value_head_dim": 2 * HEAD,
        "num_hidden_layers": 4,
        "rms_norm_eps": 1e-6,
    }


def delta_heads(values):
    """The same of ours."""
    return {"num_heads": values * HEADS, "num_key_heads": HEADS, "value_dim": 2 * HEAD}


@pytest.mark.parametrize("values", [1, 2])
def test_gated_deltanet_equals_qwen3_next(values):
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    def tensors(params):
        def by_head(*names):  # [k, ..., d] of a head's rows one behind the other
            parts = [params[f"{name}_proj"]["kernel"].reshape(WIDTH, HEADS, -1) for name in names]
            return rows(jnp.concatenate(parts, axis=-1))

        return {
            "in_proj_qkvz.weight": by_head("q", "k", "v", "gate"),
            "in_proj_ba.weight": by_head("beta", "decay"),
            "conv1d.weight": convolutions(params),
            "A_log": params["decay_rate"]["A_log"],
            "dt_bias": params["decay_rate"]["dt_bias"],
            "norm.weight": params["o_norm"]["scale"],
            "out_proj.weight": output(params["o_proj"]["kernel"]),
        }

    config = transformers.Qwen3NextConfig(**linear_heads(values))
    module = peer.Qwen3NextGatedDeltaNet(config, 0)
    assert_parity(Ours("D", delta=delta_heads(values)), tensors, called(module))


@pytest.mark.parametrize(("negative", "values"), [(False, 1), (True, 1), (True, 3)])
def test_gated_deltanet_equals_olmo_hybrid(negative, values):
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as peer

    def tensors(params):
        theirs = {"q": "q", "k": "k", "v": "v", "g": "gate", "b": "beta", "a": "decay"}
        kernels = {
            f"{name}_proj.weight": rows(params[f"{own}_proj"]["kernel"])
            for name, own in theirs.items()
        }
        return kernels | {
            "conv1d.weight": convolutions(params),
            "A_log": params["decay_rate"]["A_log"],
            "dt_bias": params["decay_rate"]["dt_bias"],
            "o_norm.weight": params["o_norm"]["scale"],
            "o_proj.weight": output(params["o_proj"]["kernel"]),
        }

    keys = linear_heads(values) | {"linear_allow_neg_eigval": negative}
    config = transformers.OlmoHybridConfig(**keys)
    keys = delta_heads(values) | {"negative_eigenvalues": negative}
    ours = Ours("D", delta=keys, norm_eps=1e-5)
    assert_parity(ours, tensors, called(peer.OlmoHybridGatedDeltaNet(config, 0)))


# --- Kimi Delta Attention --------------------------------------------------------------------


def test_kimi_delta_equals_kimi_linear():
    from transformers.models.kimi_linear import modeling_kimi_linear as peer

    def tensors(params):
        def low_rank(first, second, own):
            down, up = (params[own][f"{part}_proj"]["kernel"] for part in ("down", "up"))
            return {f"{first}.weight": rows(down), f"{second}.weight": rows(up)}

        projections = {
            f"{name}_proj.weight": rows(params[f"{name}_proj"]["kernel"]) for name in "qkv"
        }
        decay = low_rank("forget_gate.f_a_proj", "forget_gate.f_b_proj", "decay")
        return {
            **projections,
            **decay,
            **low_rank("g_a_proj", "g_b_proj", "gate"),
            "forget_gate.A_log": params["decay_rate"]["A_log"][None, None, :, None],
            "forget_gate.dt_bias": params["decay_rate"]["dt_bias"],
            "conv1d.weight": convolutions(params),
            "b_proj.weight": rows(params["beta_proj"]["kernel"]),
            "o_norm.weight": params["o_norm"]["scale"],
            "o_proj.weight": output(params["o_proj"]["kernel"]),
        }

    config = transformers.KimiLinearConfig(
        hidden_size=WIDTH,
        linear_num_heads=HEADS,
        linear_head_dim=HEAD,
        num_hidden_layers=4,
        rms_norm_eps=1e-6,
    )
    assert_parity(Ours("K"), tensors, called(peer.KimiLinearDeltaAttention(config, 0)))


# --- RWKV-7 ----------------------------------------------------------------------------------

VECTORS = {
    "w0": "decay_bias",
    "a0": "erase_bias",
    "k_k": "erase_key",
    "k_a": "key_mix",
    "r_k": "bonus",
    "ln_w": "norm_scale",
    "ln_b": "norm_bias",
}


@pytest.mark.parametrize("layer", [0, 1])
def test_rwkv7_equals_the_package_rwkv(layer):
    """Layer 1 mixes its values with those of layer 0."""
    peer = rwkv_model()

    def tensors(params):
        named = {f"x_{name}": vector for name, vector in params["shift"].items()}
        named |= {name: params[own] for name, own in VECTORS.items()}
        low_rank = {"w": "decay", "a": "erase", "g": "gate"}
        if layer:
            low_rank |= {"v": "value"}
            named |= {"v0": params["value_bias"]}
            named |= {"v_first": params["donated"].reshape(BATCH, TIME, -1)}
        for name, own in low_rank.items():
            named[f"{name}1"] = params[own]["down_proj"]["kernel"]
            named[f"{name}2"] = rows(params[own]["up_proj"]["kernel"]).T
        for name in "rkv":
            named[f"{name.upper()}_"] = rows(params[f"{name}_proj"]["kernel"]).T
        return named | {"O_": output(params["o_proj"]["kernel"]).T}

    def run(x, tensors):
        zeros = torch.zeros(WIDTH, HEADS * HEAD)
        given = {"v0": zeros[0], "v1": zeros, "v2": zeros} | tensors
        first = given.pop("v_first", torch.zeros(BATCH, TIME, HEADS * HEAD))
        return torch.stack([row_of(x[row], first[row], given) for row in range(BATCH)])

    def row_of(x, first, given):
        """By single tokens: the function for rows writes into what a gradient needs."""
        last, state, values = torch.zeros(WIDTH), torch.zeros(HEADS, HEAD, HEAD), []
        for token, v_first in zip(x, first, strict=True):
            y, last, state, _ = peer.RWKV_x070_TMix_one(
                layer, HEADS, HEAD, x=token, x_prev=last, v_first=v_first, state=state, **given
            )
            values.append(y)
        with torch.no_grad():
            state, zeros = torch.zeros(HEADS, HEAD, HEAD), torch.zeros(WIDTH)
            whole, *_ = peer.RWKV_x070_TMix_seq(
                layer, HEADS, HEAD, x=x, x_prev=zeros, v_first=first, state=state, **given
            )
        torch.testing.assert_close(whole, torch.stack(values), atol=1e-5, rtol=1e-4)
        return torch.stack(values)

    keys = {"num_layers": layer + 1, "rwkv7": {"value_residual": True}}
    assert_parity(Ours("W", norm_eps=1e-6, **keys), tensors, run)


def rwkv_model():
    """The package's functions of RWKV-7; it reads its switches when imported."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    return pytest.importorskip("rwkv.model")
