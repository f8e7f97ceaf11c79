"""What a call should give: `hybrid.ops.attention.reference` in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.ops.attention import reference
from hybrid.ops.band import Band
from hybrid.testing.call import AttentionCall

_INPUTS = ("q", "k", "v", "sinks")


def out(call: AttentionCall) -> np.ndarray:
    """float64 [b, t, n, h], from the call's numbers as its dtype holds them."""
    with jax.enable_x64(True):
        return np.asarray(_out(_inputs(call), _band(call), call.scale, call.softcap))


def gradients(call: AttentionCall, dout: np.ndarray) -> dict[str, np.ndarray]:
    """float64 gradients of sum(out · dout): dq, dk, dv, and dsinks where the call has sinks."""
    with jax.enable_x64(True):
        cotangent = jnp.asarray(dout, jnp.float64)
        found = _gradients(_inputs(call), _band(call), cotangent, call.scale, call.softcap)
        return {f"d{name}": np.asarray(found[name]) for name in _INPUTS if name in found}


def _inputs(call):
    given = {name: getattr(call, name) for name in _INPUTS}
    return {
        name: jnp.asarray(np.asarray(array, np.float64))
        for name, array in given.items()
        if array is not None
    }


def _band(call):
    names = ("q_segments", "kv_segments", "q_positions", "kv_positions")
    arrays = {name: getattr(call, name) for name in names}
    arrays = {name: a if a is None else jnp.asarray(a, jnp.int32) for name, a in arrays.items()}
    return Band(call.window_size, offset=call.offset, **arrays)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _out(inputs, band, scale, softcap):
    return reference.attend(**inputs, band=band, scale=scale, softcap=softcap)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _gradients(inputs, band, dout, scale, softcap):
    _, pullback = jax.vjp(lambda inputs: _out(inputs, band, scale, softcap), inputs)
    return pullback(dout)[0]
