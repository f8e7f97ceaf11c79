"""Attention by cuDNN's flash kernels on NVIDIA's GPUs: whom they serve, and a band in their terms.

`jax.nn.dot_product_attention` makes the call, forward and backward. Its window counts the keys
left of the token, ours the token as well, so w keys are (w − 1, 0). The causal flag stands beside
the window always, since cuDNN's window is open on the right.

Not packed documents. A bound of their number would be compiled in, and XLA asks for a backward
workspace of that many rows (8 documents in 8192 tokens of 8 heads of 256 take 1.0 GiB, 64 take
8.0 GiB, one row 0.13 GiB), while a row of t tokens may hold t documents. jax 0.10.2 also addresses
their keys by the query heads, which is wrong for grouped ones.
"""

from typing import Any

import jax

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention.request import AttentionRequest
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Unsupported

_DTYPES = ("bfloat16", "float16")
_MOST_HEAD, _MOST_HOPPER_HEAD = 128, 256  # of the backward
_HOPPER = ("H100", "H20", "H800")  # within names of devices; H200 and GH200 too


def check(request: AttentionRequest) -> None:
    """Serves rows of one document in 16 bits, with a window or without."""
    head_dim, kind = request.head_dim, request.device_kind
    most = _MOST_HOPPER_HEAD if any(name in kind for name in _HOPPER) else _MOST_HEAD
    refusals = {
        "its kernels are for NVIDIA's GPUs": request.backend != "gpu"
        or (bool(kind) and not kind.startswith("NVIDIA")),
        f"{request.dtype}: it takes {' and '.join(_DTYPES)}": request.dtype not in _DTYPES,
        f"head_dim {head_dim} is no multiple of 8": head_dim % 8 > 0,
        f"head_dim {head_dim} > {most} on {kind or 'a device that is not known'}": head_dim > most,
        "packed documents: their number is not known when it is compiled": request.has_segments,
        "the band gives explicit positions": not request.is_regular,
        "queries and keys are not the same tokens": request.offset > 0
        or request.query_length != request.key_length,
        "its backward takes no row of one token": request.query_length == 1,
        "it has no softcap": request.softcap is not None,
        "it has no sinks": request.has_sinks,
    }
    for reason, is_refused in refusals.items():
        if is_refused:
            raise Unsupported(reason)


def attend(q: Query, k: Key, v: Value, band: Band, *, scale: float = 1.0, **absent: Any) -> Query:
    """Attention by cuDNN; arguments and result as `hybrid.ops.attention.attend`."""
    del absent  # softcap and sinks, which `check` refuses
    window = band.window_size
    reach = None if window is None or window >= q.shape[1] else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=reach, implementation="cudnn"
    )
