"""Weights that need no file: a tensor's values follow from its name, its shape and a seed.

So a golden file holds results alone, and a tensor under a wrong name has wrong values. Values come
from the raw bits of Philox, which no numpy release may change.
"""

import hashlib
import math

import numpy as np

# Norm weights and scalars differ from their neutral value enough to be missed, and little enough
# to keep float32's rounding small.
_SPREADS = {"layer_scalar": 0.2, "router.scale": 0.3, "router.per_expert_scale": 0.3}
_NORM_SPREAD = 0.3
_EMBEDDING_LOUDNESS = 2.0  # logits of a few units: a softcap at 30 bends them
NUM_PROBES = 4


def weight(name: str, shape: tuple[int, ...], seed: int, norm_offset: float = 0.0) -> np.ndarray:
    """float32 values of the tensor `name`, uniform; kernels have the variance 1 / fan-in.

    norm_offset: what the model adds to norm weights, taken off here.
    """
    noise = _uniform(f"{seed}/{name}", shape)
    spread = next((s for end, s in _SPREADS.items() if name.endswith(end)), None)
    if spread is not None:
        values = 1 + spread * noise
    elif "norm" in name.split(".")[-2]:
        values = 1 - norm_offset + _NORM_SPREAD * noise
    else:
        loud = _EMBEDDING_LOUDNESS if name.endswith("embed_tokens.weight") else 1.0
        fan_in = shape[-1] if len(shape) > 1 else 1
        values = loud * math.sqrt(3 / fan_in) * noise
    return np.asarray(values, np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: int, norm_offset: float) -> dict:
    """The tensors of a whole file."""
    return {name: weight(name, shape, seed, norm_offset) for name, shape in shapes.items()}


def prints(name: str, values: np.ndarray) -> np.ndarray:
    """float64 [1 + NUM_PROBES]: the norm of a gradient, then its products with keyed vectors.

    A vector has independent entries of variance 1, so a product errs by about the norm of the
    error: a transposed, permuted or misnamed leaf shows.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    probes = math.sqrt(3) * _uniform(f"probe/{name}", (NUM_PROBES, flat.size))
    return np.concatenate([[np.linalg.norm(flat)], probes @ flat])


def _uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 values in [-1, 1)."""
    digest = hashlib.sha256(key.encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(math.prod(shape))
    unit = (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (2 * unit - 1).reshape(shape)
