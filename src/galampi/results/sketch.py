"""Count-sketches: a few numbers from which distances between long vectors can be read.

The hash is a pure function of the index and of constants that never change, so that sketches made by
different ranks, runs and versions can be compared.
"""

import math

import numpy as np
from numpy.typing import NDArray

HASH = "splitmix64(index + 0x67616c616d7069): bucket = (hash >> 32) * size >> 32, sign = -1 if hash & 1 else 1"
"""The hash as the files state it."""

_KEY = np.uint64(0x67616C616D7069)


class Sketch:
    """A count-sketch of vectors of one length (Charikar, Chen, Farach-Colton, 2002, with a single row).

    Every index i has a bucket h(i) and a sign s(i), and component b of the sketch is

        S(z)[b] = sum over i with h(i) = b of s(i) z[i].

    S is linear, so S(z) - S(z') is the sketch of z - z'. For d = z - z' the squared norm of S(d) has mean
    ||d||^2 and variance 2 / size * (||d||_2^4 - ||d||_4^4) over random h and s: all products of two different
    components vanish in the mean unless they are paired with themselves, and two indices share a bucket with
    probability 1 / size. The norm of S(d) therefore is the norm of d with a relative standard error of at
    most about

        sqrt(2 / size) / 2 = 1 / sqrt(2 size)        (2.2 % at size 1024)

    for any d whose mass is spread over many more than one component, as that of parameters is. Sketches are
    stored in float32, as parameters are: distances below 1e-6 ||z|| are rounding.
    """

    def __init__(self, size: int, num_parameters: int) -> None:
        """Compute bucket and sign of every index.

        Args:
            size: Number of components of a sketch, at least 1 and below 2^32.
            num_parameters: Length P of the vectors.
        """
        if not 1 <= size < 2**32:
            raise ValueError(f"size is {size}; must lie in [1, 2^32)")
        self.size = size
        self.num_parameters = num_parameters
        buckets, negative = _hash(size, num_parameters)
        # Sums of positive and of negative terms are taken apart: one pass over z, no signed copy of it.
        self._slots = buckets + size * negative

    def __call__(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sketch one vector.

        Args:
            z: `[P] float32` (or float64), the vector.

        Returns:
            `[size] float64`, its sketch, summed in float64.
        """
        if z.shape != (self.num_parameters,):
            raise ValueError(f"shape of z is {z.shape}; must be ({self.num_parameters},)")
        sums = np.asarray(np.bincount(self._slots, weights=z, minlength=2 * self.size), np.float64)
        return sums[: self.size] - sums[self.size :]

    @property
    def relative_error(self) -> float:
        """Relative standard error of a distance between two sketches."""
        return relative_error(self.size)


def relative_error(size: int) -> float:
    """Relative standard error of a distance between two sketches of some size, 1 / sqrt(2 size)."""
    return 1 / math.sqrt(2 * size)


def _hash(size: int, num_parameters: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bucket in [0, size) and whether the sign is negative (0 or 1), for every index, each `[P] int64`."""
    hashes = _splitmix64(np.arange(num_parameters, dtype=np.uint64) + _KEY)
    buckets = (hashes >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)
    return buckets.astype(np.int64), (hashes & np.uint64(1)).astype(np.int64)


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of each state (Steele, Lea, Flood, "Fast splittable pseudorandom ...", OOPSLA 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
