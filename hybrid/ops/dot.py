"""Products that accumulate in at least float32, by what each backend is fast at."""

import jax
import jax.numpy as jnp


def dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """einsum of two arrays in at least float32.

    On a CPU operands are widened first: XLA's bfloat16 products are slower than float32 ones
    there. Elsewhere the wider operand is cast to the narrower one's dtype, integers to floats.
    """
    wide = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    if jax.default_backend() == "cpu":
        left, right = left.astype(wide), right.astype(wide)
    else:
        narrow = _narrower(left.dtype, right.dtype)
        left, right = left.astype(narrow), right.astype(narrow)
    return jnp.einsum(equation, left, right, preferred_element_type=wide)


def _narrower(left, right):
    floats = [dtype for dtype in (left, right) if jnp.issubdtype(dtype, jnp.floating)]
    return min(floats, key=lambda dtype: dtype.itemsize)
