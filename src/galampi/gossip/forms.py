"""Forms of a message: how a vector is written into the bytes that travel along an edge, and read from them.

Owns what both ends of an edge know of each other. `full` sends the numbers as they are. The other forms send the first
message of an edge so, and then what has changed against the message before, rounded to fewer bits: the error is a part
of the change, not of the numbers, and shrinks with it (Taheri et al., arXiv 2002.09964). That works because a mailbox
holds one message, none is lost, and all come in order. What a rounded message leaves out is not lost either: its sender
keeps it, see `galampi.gossip.mixing.PushSum.give`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from galampi.errors import LostRankError
from galampi.gossip.mixing import Floats

Form = Literal["full", "bfloat16", "int8"]
"""Numbers as they are; changes as bfloat16; changes as int8 with a scale for each block of numbers."""
Bytes = NDArray[np.uint8]

# Numbers at a time: what is at work on them stays within a core's second-level cache.
_CHUNK = 1 << 15
_BLOCK = 256
"""Numbers with one scale."""
_MOST = 126.0
"""Greatest int8 written: unbiased rounding may add 1."""
_LEAST_SCALE = 1e-30
"""A block of smaller changes is sent as no change: 1 over such a scale is no number."""
_CHECKSUM_BYTES = 8


class EdgeEnd(Protocol):
    """One end of an edge: the writer at its sender or the reader at its receiver.

    Attributes:
        num_bytes: Most bytes of a message's payload.
        known: What the receiver makes of the message written or read last, [P].
    """

    num_bytes: int
    known: Floats

    def write(self, z: Floats) -> NDArray[Any]:
        """Return what travels in the place of `z`, [P]; it holds still until the next call, unless it is `z` itself."""

    def read(self, sent: Bytes) -> Floats:
        """Return the vector, [P], of the next message; good until the next call, or the next message.

        Raises:
            LostRankError: The message is not that which this end expects.
        """


def edge_end(form: Form, num_parameters: int, dtype: DTypeLike, *, num_exact: int = 0, seed: int = 0) -> EdgeEnd:
    """Return a new end of an edge.

    Args:
        form: Of its messages, the same at both ends.
        num_parameters: Length P of the vectors.
        dtype: Of the vectors: float32 or float64.
        num_exact: How many numbers at the end of a vector every message has as they are.
        seed: Of what decides about rounding up or down.
    """
    if form == "full":
        return _Full(num_parameters, np.dtype(dtype))
    rounding = _Bfloat16(seed) if form == "bfloat16" else _Int8(seed)
    return _Changes(rounding, num_parameters, np.dtype(dtype), num_exact)


class _Full:
    """Sends vectors as they are."""

    def __init__(self, num_parameters: int, dtype: np.dtype[Any]) -> None:
        self.num_bytes = num_parameters * dtype.itemsize
        self.known: Floats = np.empty(0, dtype)
        self._dtype = dtype

    def write(self, z: Floats) -> NDArray[Any]:
        self.known = z
        return z

    def read(self, sent: Bytes) -> Floats:
        self.known = sent[: self.num_bytes].view(self._dtype)
        return self.known


class _Changes:
    """Sends what has changed against the message before.

    A payload is the sum of what the receiver will know, as a check, then the exact numbers, then chunk by chunk the
    changes of the rest.
    """

    def __init__(self, rounding: _Rounding, num_parameters: int, dtype: np.dtype[Any], num_exact: int) -> None:
        self._rounding = rounding
        self._num_rounded = num_parameters - num_exact
        self._exact_bytes = num_exact * dtype.itemsize
        self._chunk_bytes = rounding.num_bytes(_CHUNK)
        self._changes_at = _CHECKSUM_BYTES + self._exact_bytes
        num_whole, num_last = divmod(self._num_rounded, _CHUNK)
        self._coded_bytes = self._changes_at + num_whole * self._chunk_bytes + rounding.num_bytes(num_last)
        self._full_bytes = num_parameters * dtype.itemsize
        self.num_bytes = max(self._coded_bytes, self._full_bytes)
        # Of a whole number of words, so that a check may sum them.
        self._memory = np.zeros(num_parameters + num_parameters % 2, dtype)
        self.known = self._memory[:num_parameters]
        self._is_first = True
        self._coded = np.zeros(0, np.uint8)
        self._change = np.zeros(_CHUNK, np.float32)

    def write(self, z: Floats) -> NDArray[Any]:
        if self._is_first:
            self._is_first = False
            self.known[:] = z
            self._coded = np.zeros(self._coded_bytes, np.uint8)
            return z
        for start, stop, coded in self._chunks(self._coded):
            change = self._change[: self._rounding.padded(stop - start)]
            known = self.known[start:stop]
            np.subtract(z[start:stop], known, out=change[: stop - start], casting="same_kind")
            change[stop - start :] = 0
            self._rounding.write(change, coded)
            known += change[: stop - start]
        self.known[self._num_rounded :] = z[self._num_rounded :]
        self._coded[_CHECKSUM_BYTES : self._changes_at] = self.known[self._num_rounded :].view(np.uint8)
        self._coded[:_CHECKSUM_BYTES].view(np.uint64)[0] = self._checksum()
        return self._coded

    def read(self, sent: Bytes) -> Floats:
        if self._is_first:
            self._is_first = False
            self.known[:] = sent[: self._full_bytes].view(self.known.dtype)
            return self.known
        for start, stop, coded in self._chunks(sent):
            change = self._change[: self._rounding.padded(stop - start)]
            self._rounding.read(coded, change)
            self.known[start:stop] += change[: stop - start]
        self.known[self._num_rounded :].view(np.uint8)[:] = sent[_CHECKSUM_BYTES : self._changes_at]
        expected, found = sent[:_CHECKSUM_BYTES].view(np.uint64)[0], self._checksum()
        if found != expected:
            raise LostRankError(
                f"a message of changes does not fit what was known: its sum is {found}, its sender's {expected}"
            )
        return self.known

    def _chunks(self, payload: Bytes) -> list[tuple[int, int, Bytes]]:
        """Return where each chunk of the vector starts and stops, and its bytes in a payload."""
        chunks = []
        for number, start in enumerate(range(0, self._num_rounded, _CHUNK)):
            stop = min(start + _CHUNK, self._num_rounded)
            at = self._changes_at + number * self._chunk_bytes
            chunks.append((start, stop, payload[at : at + self._rounding.num_bytes(stop - start)]))
        return chunks

    def _checksum(self) -> np.uint64:
        """Return a number that differs where what the two ends know differs."""
        return np.uint64(self._memory.view(np.uint64).sum())


class _Rounding(ABC):
    """How changes are rounded: up or down by chance, such that the mean is right."""

    def __init__(self, seed: int) -> None:
        """Draw nothing yet: an end that reads never rounds."""
        self._random = np.random.default_rng(seed)

    @cached_property
    def _chances(self) -> NDArray[Any]:
        """What decides: drawn once, and used from another place on each time, for drawing costs more than rounding."""
        return self._draw(4 * _CHUNK)

    def chances(self, count: int) -> NDArray[Any]:
        """Return a number for each of `count` that decides whether it is rounded up."""
        at = int(self._random.integers(self._chances.size - count + 1))
        return self._chances[at : at + count]

    @abstractmethod
    def _draw(self, count: int) -> NDArray[Any]:
        """Draw chances."""

    @abstractmethod
    def padded(self, count: int) -> int:
        """Return how many numbers are written for so many."""

    @abstractmethod
    def num_bytes(self, count: int) -> int:
        """Return how many bytes so many numbers take."""

    @abstractmethod
    def write(self, change: NDArray[np.float32], into: Bytes) -> None:
        """Write changes, [padded count], and leave in their place what `read` will make of them."""

    @abstractmethod
    def read(self, coded: Bytes, change: NDArray[np.float32]) -> None:
        """Read changes into `change`, [padded count]."""


class _Bfloat16(_Rounding):
    """The upper half of a float32: 8 bits of the number and its exponent."""

    def _draw(self, count: int) -> NDArray[Any]:
        return self._random.integers(1 << 16, size=count, dtype=np.uint16)

    def padded(self, count: int) -> int:
        return count

    def num_bytes(self, count: int) -> int:
        return 2 * count

    def write(self, change: NDArray[np.float32], into: Bytes) -> None:
        bits = change.view(np.uint32)
        bits += self.chances(change.size)
        bits >>= 16
        into.view(np.uint16)[:] = bits
        bits <<= 16

    def read(self, coded: Bytes, change: NDArray[np.float32]) -> None:
        bits = change.view(np.uint32)
        bits[:] = coded.view(np.uint16)
        bits <<= 16


class _Int8(_Rounding):
    """Blocks of int8 with a float32 scale each, that of its greatest change."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._magnitudes = np.empty(_CHUNK, np.float32)

    def _draw(self, count: int) -> NDArray[Any]:
        return self._random.random(count, np.float32)

    def padded(self, count: int) -> int:
        return -(-count // _BLOCK) * _BLOCK

    def num_bytes(self, count: int) -> int:
        return self.padded(count) + self.padded(count) // _BLOCK * 4

    def write(self, change: NDArray[np.float32], into: Bytes) -> None:
        scales, codes = self._parts(into)
        blocks, magnitudes = change.reshape(-1, _BLOCK), self._magnitudes[: change.size].reshape(-1, _BLOCK)
        np.abs(blocks, out=magnitudes)
        np.max(magnitudes, axis=1, out=scales[:, 0])
        scales /= _MOST
        scales[scales < _LEAST_SCALE] = 0
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factors = np.where(scales == 0, np.float32(0), 1 / scales)
            np.multiply(blocks, factors, out=blocks)
            np.add(blocks, self.chances(change.size).reshape(-1, _BLOCK), out=blocks)
            np.floor(blocks, out=blocks)
            np.copyto(codes, blocks, casting="unsafe")
        np.multiply(blocks, scales, out=blocks)

    def read(self, coded: Bytes, change: NDArray[np.float32]) -> None:
        scales, codes = self._parts(coded)
        blocks = change.reshape(-1, _BLOCK)
        blocks[:] = codes
        np.multiply(blocks, scales, out=blocks)

    def _parts(self, payload: Bytes) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return scales, [blocks, 1], and codes, [blocks, _BLOCK], of a payload."""
        num_blocks = payload.size // (_BLOCK + 4)
        scales = payload[: 4 * num_blocks].view(np.float32).reshape(-1, 1)
        return scales, payload[4 * num_blocks :].view(np.int8).reshape(-1, _BLOCK)
