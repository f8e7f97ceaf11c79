"""In which order rows come: a shuffle of its own for each epoch, computed for one row at a time.

A permutation of n rows as a small cipher (a balanced Feistel network on the row's number) needs
no list of n numbers and no random state: place r of the run is known from (seed, r) alone, on
any machine and by any number of processes. Numbers that the cipher sends beyond n are enciphered
again until they fall below it ("cycle walking", Black and Rogaway, CT-RSA 2002), which keeps
it a permutation of exactly n.
"""

import functools
import hashlib

_ROUNDS = 6
_MASK = (1 << 64) - 1


def row_at(place: int, num_rows: int, seed: int) -> int:
    """The row that comes at `place` >= 0 of an endless run over epochs of `num_rows` rows."""
    epoch, index = divmod(place, num_rows)
    half_bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    index = _encipher(index, half_bits, keys)
    while index >= num_rows:
        index = _encipher(index, half_bits, keys)
    return index


@functools.lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))


def _encipher(number: int, half_bits: int, keys: tuple[int, ...]) -> int:
    """A bijection of the numbers below 4**half_bits."""
    mask = (1 << half_bits) - 1
    left, right = number >> half_bits, number & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half_bits | right


def _mix(x: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31
