"""How the report writes numbers: digits, signs, units.  Pure; None becomes a dash.

Signs are real minus signs, units are binary for bytes and decimal for everything else.
"""

import math
from typing import Any

DASH = "–"


def fixed(value: float | None) -> str:
    """`1.9205`, with a real minus sign."""
    return DASH if value is None else f"{value:.4f}".replace("-", "−")


def score(value: float | None) -> str:
    """`87.5`, of 100, with a real minus sign."""
    return DASH if value is None else f"{value:.1f}".replace("-", "−")


def signed(value: float | None) -> str:
    """`+0.0410` or `−0.0002`."""
    return DASH if value is None else f"{value:+.4f}".replace("-", "−")


def percent(share: float | None) -> str:
    """`98.8 %`."""
    return DASH if share is None else f"{100 * share:.1f} %"


def binary(size: float | None) -> str:
    """Bytes: `96 KiB`, `1.5 MiB`."""
    return _with_unit(size, 1024, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def decimal(count: float | None) -> str:
    """Counts and FLOPs: `950`, `310 k`, `1.25 M`, `3.1 T`."""
    return _with_unit(count, 1000, 999.5, ("", " k", " M", " G", " T", " P", " E"))


def times(factor: float | None) -> str:
    """`1.04 ×`."""
    return DASH if factor is None else f"{_three_digits(factor)} ×"


def plain(value: Any) -> str:
    """A config value as people write it: `256`, `0.25`, `LLLG`."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return f"{value:g}".replace("-", "−") if isinstance(value, float) else str(value)


def _with_unit(value: float | None, step: int, limit: float, units: tuple[str, ...]) -> str:
    if value is None:
        return DASH
    for unit in units[:-1]:
        if abs(value) < limit:
            return f"{_three_digits(value)}{unit}"
        value /= step
    return f"{_three_digits(value)}{units[-1]}"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent, trailing zeros of decimals cut."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.rstrip("0").rstrip(".") if "." in text else text
