"""Recurrent mixers as their equations say, in numpy, one document and one token at a time.

Each takes a layer's parameters and a document [t, d], and gives [t, d]. `check` holds our module
against them: the oracle of the quick tests, and what every planted mistake must fail.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from model.mixer_contract import MODEL

from hybrid import experiment
from hybrid.model.mixers.protocol import CacheFormat, CacheStep, LayerState, Placement
from hybrid.model.pattern import plan_layers

HEAD_DIM, STATE_DIM, GROUPS = 8, 3, 2
KEYS = {
    "M": {"mamba2": {"head_dim": HEAD_DIM, "state_dim": STATE_DIM, "num_groups": GROUPS}},
    "R": {"rg_lru": {"width": 12}},
}
DOCUMENTS = (61, 1, 6, 82)  # tokens: within a chunk, and longer than one
CUT = 67  # inside a document


def mamba2(params, u):
    """Equations (1) to (4) of `mamba2.py`."""
    x = _silu(_convolution(params["x_conv"], _product(u, params["x_proj"])))
    shared = _silu(_convolution(params["bc_conv"], _product(u, params["bc_proj"])))
    dt = np.log1p(np.exp(u @ params["dt_proj"]["kernel"] + params["dt_bias"]))
    heads = dt.shape[1]
    group = np.arange(heads) // (heads // GROUPS)
    write, read = np.moveaxis(shared.reshape(len(u), 2, GROUPS, STATE_DIM)[:, :, group], 1, 0)
    state, rows = np.zeros((heads, HEAD_DIM, STATE_DIM)), []
    for t, x_t in enumerate(x.reshape(len(u), heads, HEAD_DIM)):
        keeps = np.exp(-np.exp(params["a_log"]) * dt[t])[:, None, None]
        state = keeps * state + (dt[t][:, None] * x_t)[..., None] * write[t][:, None]
        rows.append((state @ read[t][..., None])[..., 0] + params["skip"][:, None] * x_t)
    y = np.stack(rows).reshape(len(u), -1) * _silu(_product(u, params["gate_proj"]))
    y = y.reshape(len(u), GROUPS, -1)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
    return _product(y.reshape(len(u), -1) * params["norm"]["scale"], params["out_proj"], 2)


def rg_lru(params, u):
    """Equations (1) to (5) of `rg_lru.py`."""
    x = _convolution(params["conv"], u @ params["x_proj"]["kernel"])
    r, i = (_sigmoid(_blocks(x, params[name])) for name in ("recurrence_gate", "input_gate"))
    a = np.exp(-8 * np.log1p(np.exp(params["decay"])) * r)
    a[0] = 0
    h, rows = np.zeros(x.shape[1]), []
    for t in range(len(u)):
        h = a[t] * h + np.sqrt(1 - a[t] ** 2) * i[t] * x[t]
        rows.append(h)
    gate = _gelu(u @ params["gate_proj"]["kernel"])
    return (np.stack(rows) * gate) @ params["out_proj"]["kernel"]


def _product(x, linear, num_axes=1):
    kernel = linear["kernel"]
    rows = int(np.prod(kernel.shape[:num_axes]))
    return x @ kernel.reshape(rows, -1)


def _convolution(params, x):
    size = len(params["kernel"])
    padded = np.concatenate([np.zeros((size - 1, x.shape[1])), x])
    return sum(padded[j : j + len(x)] * params["kernel"][j] for j in range(size)) + params["bias"]


def _blocks(x, gate):
    blocks = np.split(x, len(gate["kernel"]), axis=1)
    parts = [block @ kernel for block, kernel in zip(blocks, gate["kernel"], strict=True)]
    return np.concatenate(parts, axis=1) + gate["bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


WRITTEN_OUT = {"M": mamba2, "R": rg_lru}


# --- The check -------------------------------------------------------------------------------


def check(letter):
    """Packed documents, and one cut into two calls with padding, equal the equations in float64.

    Raises: AssertionError.
    """
    config = _config(letter, "float64")
    (spec,) = plan_layers(config).mixers()
    graph, shapes = nnx.split(spec.build(config, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), nnx.to_pure_dict(shapes))
    u = rng.normal(size=(1, sum(DOCUMENTS), config.d_model))
    documents = np.split(u[0], np.cumsum(DOCUMENTS)[:-1])
    wanted = np.concatenate([WRITTEN_OUT[letter](params, document) for document in documents])

    @jax.jit
    def run_with(params, x, placement, state):
        y, _, state = nnx.merge(graph, nnx.State(params))(x, placement, state=state)
        return y, state

    run, scale = functools.partial(run_with, params), np.abs(wanted).max()
    packed, _ = run(u, _packed(), None)
    np.testing.assert_allclose(packed[0], wanted, atol=1e-9 * scale)
    last = documents[-1][None]
    np.testing.assert_allclose(
        _in_two_calls(spec, run, last)[0], wanted[-DOCUMENTS[-1] :], atol=1e-9 * scale
    )
    _check_dtypes(letter)


def _packed():
    rows = (np.arange(length) for length in DOCUMENTS)
    positions = jnp.asarray(np.concatenate(list(rows)), jnp.int32)[None]
    segments = jnp.asarray(np.repeat(np.arange(len(DOCUMENTS)), DOCUMENTS), jnp.int32)[None]
    return Placement(positions, segments, {})


def _in_two_calls(spec, run, x):
    """The results of x, cut at CUT, the second call behind the first one's state and padded."""
    form = CacheFormat(x.shape[1])
    arrays, parts = spec.init_state(form, 1, 1), []
    padding = np.ones((1, 5, x.shape[2]))
    for start, part in ((0, x[:, :CUT]), (CUT, x[:, CUT:])):
        count = part.shape[1]
        index = jnp.arange(count + 5, dtype=jnp.int32)[None]
        placement = Placement(
            positions=jnp.where(index < count, start + index, -1),
            segment_ids=None,
            shared={},
            step=CacheStep(form, *(jnp.array([n], jnp.int32) for n in (start, start, count)), {}),
        )
        padded = np.concatenate([part, padding], axis=1)
        y, arrays = run(padded, placement, LayerState(arrays, 0))
        parts.append(y[:, :count])
    return np.concatenate(parts, axis=1)


def _check_dtypes(letter):
    """What adds up over a row is float32 in a bfloat16 model."""
    (spec,) = plan_layers(_config(letter, "bfloat16")).mixers()
    assert spec.shapes()["state"].dtype == jnp.float32


def _config(letter, dtype):
    keys = {"pattern": letter, "num_layers": 1, "last_layer": "any", "dtype": dtype}
    return experiment.from_config({"model": MODEL | keys | KEYS[letter]}).model
