"""The callable under test: given a call in the arrays it takes, it gives numpy arrays back."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.ops.dispatch import Unsupported
from hybrid.testing.call import AttentionCall

# Largest error allowed, of the largest entry of what is wanted or of 1, by the call's dtype:
# of values, and of gradients.
TOLERANCES = {
    "float64": (1e-10, 1e-9),
    "float32": (2e-5, 1e-4),
    "bfloat16": (3e-2, 6e-2),
    "float16": (4e-3, 1e-2),
}
_DIFFERENTIATED = ("q", "k", "v", "sinks")


class Mistake(Exception):
    """What a check found to be wrong, in a line."""


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@dataclasses.dataclass(frozen=True)
class Subject:
    """A callable and the sizes and dtype it is tried with.

    Attributes:
      function: call -> [b, t, n, h].
      gradients: (call, dout) -> {"dq": ..., "dk": ..., "dv": ..., "dsinks": ...}; None: derived.
      arrays: a name of `LIBRARIES`, whose arrays a call holds.
      length, head_dim: tokens of most rows, and h.
      tolerance: in place of `TOLERANCES`, for values and gradients alike.
    """

    function: Callable[[AttentionCall], Any]
    gradients: Callable[[AttentionCall, Any], dict[str, Any]] | None
    arrays: str
    dtype: str
    length: int
    head_dim: int
    tolerance: float | None = None

    @property
    def values_tolerance(self) -> float:
        """Largest error of values."""
        return TOLERANCES[self.dtype][0] if self.tolerance is None else self.tolerance

    @property
    def gradients_tolerance(self) -> float:
        """Largest error of gradients."""
        return TOLERANCES[self.dtype][1] if self.tolerance is None else self.tolerance

    def raw(self, call: AttentionCall) -> np.ndarray:
        """What the callable gives, in its dtype and shape."""
        library = LIBRARIES[self.arrays]
        with _precision(call):
            return library.to_numpy(self.function(call.map_arrays(library.from_numpy)))

    def out(self, call: AttentionCall) -> np.ndarray:
        """float64 [b, t, n, h].  Raises: Mistake where the shape is another."""
        out = self.raw(call)
        if out.shape != call.q.shape:
            raise Mistake(f"the result is {list(out.shape)}, q is {list(call.q.shape)}")
        return out.astype(np.float64)

    def gradients_of(self, call: AttentionCall, dout: np.ndarray) -> dict[str, np.ndarray]:
        """float64 gradients of sum(out · dout) by name.  Raises: Unsupported without a way."""
        library = LIBRARIES[self.arrays]
        function = self.gradients or library.derive(self.function)
        with _precision(call):
            found = function(call.map_arrays(library.from_numpy), library.from_numpy(dout))
            return {
                name: library.to_numpy(gradient).astype(np.float64)
                for name, gradient in found.items()
                if gradient is not None
            }


def _precision(call):
    is_double = call.q.dtype == np.float64
    return jax.enable_x64(True) if is_double else contextlib.nullcontext()


# --- Arrays of other libraries ----------------------------------------------------------------


def jax_gradients(function: Callable[[AttentionCall], jax.Array]) -> Callable[..., dict]:
    """(call, dout) -> gradients by name, of a function that jax differentiates."""

    def gradients(call, dout):
        inputs = _differentiated(call)
        call_with = lambda inputs: function(dataclasses.replace(call, **inputs))  # noqa: E731
        out, pullback = jax.vjp(call_with, inputs)
        found = pullback(jnp.asarray(dout, out.dtype))[0]
        return {f"d{name}": gradient for name, gradient in found.items()}

    return gradients


def torch_gradients(function: Callable[[AttentionCall], Any]) -> Callable[..., dict]:
    """(call, dout) -> gradients by name, of a function that torch differentiates."""
    import torch

    def gradients(call, dout):
        inputs = _differentiated(call)
        inputs = {name: array.detach().requires_grad_() for name, array in inputs.items()}
        out = function(dataclasses.replace(call, **inputs))
        leaves = list(inputs.values())
        found = torch.autograd.grad(out, leaves, dout.to(out), allow_unused=True)
        return {f"d{name}": gradient for name, gradient in zip(inputs, found, strict=True)}

    return gradients


def _no_gradients(function):
    raise Unsupported("numpy has no gradients: give `gradients`")


def _differentiated(call):
    return {
        name: getattr(call, name) for name in _DIFFERENTIATED if getattr(call, name) is not None
    }


def _to_torch(array):
    import torch

    array = np.array(array)  # torch takes no read-only arrays
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _from_torch(tensor):
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


@dataclasses.dataclass(frozen=True)
class _Library:
    from_numpy: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]
    derive: Callable[[Callable], Callable]


LIBRARIES = {
    "jax": _Library(jnp.asarray, np.asarray, jax_gradients),
    "torch": _Library(_to_torch, _from_torch, torch_gradients),
    "numpy": _Library(np.asarray, np.asarray, _no_gradients),
}
