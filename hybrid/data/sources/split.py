"""Which documents are held out: by their hashes, or of a text that stands alone its end."""

import math

import numpy as np

DIGEST_BYTES = 16


def nominal_threshold(fraction: float) -> bytes:
    """The hash below which that part of all hashes lies, 8 bytes."""
    return math.ceil(fraction * 2.0**64).to_bytes(8, "big")


def is_below(digests: np.ndarray, threshold: bytes) -> np.ndarray:
    """Which of the digests [n, 2] come before a hash of 8 or 16 bytes, bool [n]."""
    high, low = key_of(threshold.ljust(DIGEST_BYTES, b"\0"))
    highs, lows = digests.T
    return (highs < high) | ((highs == high) & (lows < low))


def key_of(digest: bytes) -> tuple[int, int]:
    """A digest as the two numbers that a listing keeps."""
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def threshold_of(digests: np.ndarray, fraction: float) -> bytes:
    """The hash below which documents are held out: at least one of them, never all."""
    ordered = np.unique(digests, axis=0)
    nominal = nominal_threshold(fraction)
    below = int(is_below(ordered, nominal).sum())
    number = min(max(below, 1), len(ordered) - 1)
    return nominal if number == below else ordered[number].astype(">u8").tobytes()


def end_of_training(text: bytes, fraction: float) -> int:
    """Where the held-out end of a text begins: behind a line's end near there, else a character.

    About `fraction` of the text is held out, at most twice as much; 0 for a text of one character.
    """
    size = min(max(round(fraction * len(text)), 1), len(text) - 1)
    goal = len(text) - size
    line = text.rfind(b"\n", max(goal - size, 0), goal) + 1
    if line:
        return line
    # Bytes 10xxxxxx go on with a character, at most three of them in UTF-8.
    near = sorted(range(goal - 3, goal + 4), key=lambda place: abs(place - goal))
    inside = (place for place in near if 0 < place < len(text))
    begin = next((place for place in inside if text[place] & 0xC0 != 0x80), 0)
    return begin or (goal if len(text) > 4 else 0)
