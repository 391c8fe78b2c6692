"""The order of samples: a seeded permutation of the data set per epoch that is computed, never stored.

Position p of the endless stream of samples lies in epoch p // length at place p % length. A keyed permutation sends
the place to an index, so the order of a run is fixed by (seed, length) and its state is one integer, whatever the
number of workers or ranks.
"""

from __future__ import annotations

from math import isqrt

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 8


def sample_index(seed: int, position: int, length: int) -> int:
    """Index in [0, length) of the sample at `position` >= 0 of the stream; every epoch visits every index once.

    A Feistel network with modular addition permutes a square domain just larger than `length`; walking along its
    cycles until the value is below `length` restricts it to the data set (Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains", methods 2 and 3). O(1) memory and, on average, fewer than four walks.

    Raises ValueError for a length < 1 or a negative position.
    """
    if length < 1:
        raise ValueError(f"Cannot order {length} samples; the data set must hold at least 1.")
    if position < 0:
        raise ValueError(f"Stream position {position} is negative; positions count samples from 0.")
    epoch, index = divmod(position, length)
    key = _mix(_mix(seed & _WORD) + epoch)
    side = isqrt(length - 1) + 1
    while True:
        index = _permute(index, side, key)
        if index < length:
            return index


def _permute(value: int, side: int, key: int) -> int:
    """A keyed bijection of [0, side * side): each round adds a keyed hash of one digit (base `side`) to the other."""
    left, right = divmod(value, side)
    for round_ in range(_ROUNDS):
        digest = _mix(key + (round_ << 32) + right)
        left, right = right, (left + digest) % side
    return left * side + right


def _mix(word: int) -> int:
    """The 64-bit finaliser of SplitMix64 (Steele, Lea & Flood 2014): nearby words give unrelated words."""
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
