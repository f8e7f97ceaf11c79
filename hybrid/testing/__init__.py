"""A conformance suite for anyone's attention: what hybrid models need, checked from outside.

    def mine(call):  # an AttentionCall of jax arrays -> [b, t, n, h]
        call.need_only("window_size", "segments")
        return my_attention(call.q, call.k, call.v, call.window_size, call.q_segments, call.scale)

    print(attention_conformance(mine))

The contract is that of `hybrid.attend`; the oracle is its reference in float64. docs/conformance.md
tells what is checked and what public implementations got.

Read next: `call.py` (what an adapter is given), `checks/`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hybrid.ops.dispatch import Unsupported
from hybrid.testing.call import AttentionCall
from hybrid.testing.checks import CHECKS, Check
from hybrid.testing.report import FAILED, PASSED, REFUSED, Report, Row
from hybrid.testing.subject import (
    LIBRARIES,
    TOLERANCES,
    Mistake,
    Subject,
    first_line,
    jax_gradients,
    torch_gradients,
)

__all__ = [
    "CHECKS",
    "AttentionCall",
    "Report",
    "Row",
    "Unsupported",
    "attention_conformance",
    "jax_gradients",
    "torch_gradients",
]


def attention_conformance(
    function: Callable[[AttentionCall], Any],
    *,
    arrays: str = "jax",
    gradients: Callable[[AttentionCall, Any], dict[str, Any]] | None = None,
    dtype: str = "float32",
    length: int = 64,
    head_dim: int = 64,
    tolerance: float | None = None,
    checks: Sequence[str] | None = None,
    name: str | None = None,
) -> Report:
    """What an attention gets right, wrong and refuses, a row a check.

    Args:
      function: call -> [b, t, n, h]; raises `Unsupported` or NotImplementedError, with a reason,
        for a call that it does not serve (`AttentionCall.need_only` does).
      arrays: "jax", "torch" or "numpy": whose arrays a call holds.
      gradients: (call, dout) -> {"dq", "dk", "dv", and "dsinks" where there are sinks}; None:
        derived by jax or torch.
      dtype: of q, k, v: "float32", "bfloat16", "float16" or "float64".
      length, head_dim: tokens of most rows, at least 64, and h, for kernels that have blocks.
      tolerance: largest error, of the largest entry or 1; None: by dtype.
      checks: names of `CHECKS`; None: all.
      name: in the report; None: the function's.
    Raises: ValueError for an argument that is none of these.
    """
    for key, value, known in (("arrays", arrays, LIBRARIES), ("dtype", dtype, TOLERANCES)):
        if value not in known:
            raise ValueError(f"{key}: must be one of {', '.join(known)}, got {value!r}")
    unknown = [check for check in checks or () if check not in CHECKS]
    if unknown:
        raise ValueError(f"checks: no check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    if length < 64:
        raise ValueError(f"length: must be at least 64, got {length}")
    subject = Subject(function, gradients, arrays, dtype, length, head_dim, tolerance)
    rows = tuple(_row(CHECKS[check], subject) for check in checks or CHECKS)
    return Report(name or str(getattr(function, "__name__", function)), dtype, rows)


def _row(check: Check, subject: Subject) -> Row:
    try:
        refused = check.run(subject)
    except (Unsupported, NotImplementedError) as refusal:
        return Row(check.name, REFUSED, first_line(refusal))
    except Mistake as mistake:
        return Row(check.name, FAILED, str(mistake))
    except Exception as error:  # a foreign function may raise anything, and that is the outcome
        return Row(check.name, FAILED, f"raised {type(error).__name__}: {first_line(error)}")
    return Row(check.name, PASSED, refused or "")
