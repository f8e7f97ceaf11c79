"""How the report writes a figure: digits, signs, units.  Pure; None becomes a dash.

Signs are real minus signs, units are binary for bytes and decimal for everything else.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"
Interval = Mapping[str, Any]  # mean, and low and high, which are None where nothing can be told


def fixed(value: float | None, digits: int = 4) -> str:
    """`1.9205`, with a real minus sign."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    """`+0.0410` or `−0.0002`."""
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """`98.8 %`."""
    return DASH if share is None else f"{100 * share:.1f} %"


def binary(size: float | None) -> str:
    """Bytes: `96 KiB`, `1.5 MiB`."""
    if size is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{_three(size)} {unit}"
        size /= 1024
    return f"{_three(size)} TiB"


def decimal(count: float | None) -> str:
    """Counts and FLOPs: `950`, `310 k`, `1.25 M`, `3.1 T`."""
    if count is None:
        return DASH
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(count) < 999.5:
            return f"{_three(count)}{unit}"
        count /= 1000
    return f"{_three(count)} E"


def times(factor: float | None) -> str:
    """`1.04 ×`."""
    return DASH if factor is None else f"{_three(factor)} ×"


def plain(value: Any) -> str:
    """A config value as people write it: `256`, `0.25`, `LLLG`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(map(plain, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{value:g}".replace("-", "−") if isinstance(value, float) else str(value)


def has_interval(interval: Interval | None) -> bool:
    """Whether an interval's ends are known."""
    if interval is None:
        return False
    return interval.get("low") is not None and interval.get("high") is not None


def listed(words: Sequence[str], most: int = 6) -> str:
    """`8`, `8 and 16`, `8, 16 and 32`; beyond `most`, `… and 3 more`."""
    shown = list(words[:most])
    if len(words) > most:
        shown.append(f"{len(words) - most} more")
    return " and ".join([part for part in (", ".join(shown[:-1]), shown[-1]) if part])


def _three(value: float) -> str:
    """Three significant digits without an exponent, trailing zeros of decimals cut."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.rstrip("0").rstrip(".") if "." in text else text
