"""Spaces of observations: how what any simulator shows becomes one array.

Owns which observations are images, how they are laid out and scaled, and which spaces are refused. Knows neither
simulators nor networks.

An image keeps its shape, channels first; a vector is a row of float32. Everything else - numbers out of a set, bits,
and what is put together of several parts - becomes one row of float32, and the encoding says which part of the row is
what: one number of `n` is `n` columns of which one is 1, and an image within lies flat.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from galampi.errors import UserError

MOST_CATEGORIES = 65_536
"""Most columns that a number out of a set may become."""
NO_BOUND = 1e30
"""A bound beyond is none: some write the largest number of a type for infinity."""
_LEAST_SIDE = 8
"""A matrix with sides no shorter is an image of one channel, others are vectors."""
_FEW_CHANNELS = 16
_USUAL_CHANNELS = 4


class UnfitError(Exception):
    """An observation is not of its space; the text says what it is."""


@dataclass(frozen=True)
class Part:
    """A part of a row.

    Attributes:
        name: Path of its keys, as `camera` or `arm.joints`; `observation` for a space that is no Dict or Tuple.
        kind: What it is.
        shape: Channels, height and width of an image; length of a vector.
        start: First column.
    """

    name: str
    kind: Literal["image", "vector"]
    shape: tuple[int, ...]
    start: int

    @property
    def columns(self) -> slice:
        """Its columns of the row."""
        return slice(self.start, self.start + math.prod(self.shape))


class Encoding:
    """How observations of a space become one array each.

    Attributes:
        shape: Of that array: channels, height and width of an image, or the length of a row.
        dtype: uint8 of an image or vector of bytes, else float32.
        scale: Factor that brings bytes into [0, 1], and is left to who computes with them; 1 for float32.
        parts: What the array holds: one part with an image's or vector's own shape, or several in a row.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        """Encode a space.

        Raises:
            UserError: It, or a part of it, cannot be encoded.
        """
        self._codes = list(_codes(space, ""))
        if not self._codes:
            raise UserError(f"environment.id: the observation space {_kind(space)} is empty")
        self._is_whole = len(self._codes) == 1 and isinstance(space, gym.spaces.Box)
        first = self._codes[0]
        parts, start = [], 0
        for code in self._codes:
            parts.append(Part(code.name or "observation", code.kind, code.shape, start))
            start += math.prod(code.shape)
        self.parts = tuple(parts)
        self.shape: tuple[int, ...] = first.shape if self._is_whole else (start,)
        self.dtype = first.dtype if self._is_whole else np.dtype(np.float32)
        self.scale = first.scale if self._is_whole else 1.0

    @property
    def low_and_range(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each part what is taken from its values and what they are divided by then, [*shape] each.

        The `scale` of a single part comes on top, as that of the array does.
        """
        if self._is_whole:
            return [self._codes[0].low_and_range]
        return [(low, extent / code.scale) for code in self._codes for low, extent in (code.low_and_range,)]

    @property
    def is_image(self) -> bool:
        """Whether the array is an image, and not a row."""
        return len(self.shape) == 3

    @property
    def numbers(self) -> np.ndarray:
        """Which columns of a row are numbers: [length] bool, False for those of images, bits and sets."""
        return np.concatenate([np.full(math.prod(code.shape), isinstance(code, _Vector)) for code in self._codes])

    def normalized(self) -> Encoding:
        """Return the encoding of the same rows after their numbers were normalised."""
        other = copy.copy(self)
        other.dtype, other.scale = np.dtype(np.float32), 1.0
        return other

    @property
    def space(self) -> gym.spaces.Box:
        """The space of the arrays."""
        low, high = (0, 255) if self.dtype == np.uint8 else (-np.inf, np.inf)
        return gym.spaces.Box(low, high, self.shape, self.dtype.type)

    def __call__(self, observation: Any) -> np.ndarray:
        """Encode one observation, as a view of it where it can be.

        Raises:
            UnfitError: It is not of the space.
        """
        if self._is_whole:
            array: np.ndarray = self._codes[0].take(observation)[0]
            return array
        row = np.empty(self.shape, np.float32)
        for part, code in zip(self.parts, self._codes, strict=True):
            row[part.columns] = code.take_from(observation).ravel() * np.float32(code.scale)
        return row

    @property
    def channels_last(self) -> bool:
        """Whether the space has an image's channels last; the array has them first."""
        first = self._codes[0]
        return self._is_whole and isinstance(first, _Image) and first.channels_last

    def unlaid(self, observations: np.ndarray) -> np.ndarray:
        """Return encoded observations [N, ...] with their numbers in the order of the space, where that is one Box."""
        first = self._codes[0]
        return first.unlaid(observations) if self._is_whole and isinstance(first, _Image) else observations

    @property
    def guesses(self) -> list[str]:
        """What is said of images of which not all that is usual tells where their channels are, a line each."""
        return [code.told for code in self._codes if isinstance(code, _Image) and code.is_guessed]

    def batch(self, observations: np.ndarray) -> np.ndarray:
        """Encode images or vectors [N, ...] of one Box space, a view of them where it can be."""
        assert self._is_whole
        return self._codes[0].arrange(observations)


class _Leaf:
    """A part: the keys that lead to it, and how its values become columns; here, as the numbers they are."""

    kind: Literal["image", "vector"] = "vector"
    dtype: np.dtype[Any] = np.dtype(np.float32)
    scale = 1.0

    def __init__(self, keys: tuple[str | int, ...], value_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.name = ".".join(map(str, keys))
        self.shape = shape
        self._keys = keys
        self._value_shape = value_shape

    def take_from(self, observation: Any) -> np.ndarray:
        """Return the encoded part [1, ...] of a whole observation."""
        for depth, key in enumerate(self._keys):
            try:
                observation = observation[key]
            except (KeyError, IndexError, TypeError):
                path = ".".join(map(str, self._keys[: depth + 1]))
                raise UnfitError(f"has no {path!r}: {_shown(observation)}") from None
        return self.take(observation)

    def take(self, value: Any) -> np.ndarray:
        """Return the encoded part [1, ...] of its own value."""
        try:
            values = np.asarray(value)
        except Exception as error:  # Of whatever package the value is.
            raise self._unfit(value, error) from None
        if values.shape != self._value_shape or values.dtype.kind not in "biuf":
            raise self._unfit(value)
        if self.dtype == np.uint8 and values.dtype.kind != "b" and values.dtype != np.uint8:
            bad = values[(values < 0) | (values > 255) | (values != np.floor(values))]
            if len(bad):
                raise UnfitError(
                    f"{f'{self.name!r} ' if self.name else ''}holds {bad[0]}; its space is of bytes, which are whole "
                    "numbers from 0 to 255"
                )
        return self.arrange(values[None])

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Encode values [N, ...] of the right shape."""
        return values.reshape(len(values), -1).astype(np.float32)

    @property
    def low_and_range(self) -> tuple[np.ndarray, np.ndarray]:
        """What is taken from its values and what they are divided by then, [*shape] each, beside `scale`."""
        return np.zeros(self.shape), np.ones(self.shape)

    def _unfit(self, value: Any, error: Exception | None = None) -> UnfitError:
        where = f"{self.name!r} " if self.name else ""
        if error is None:
            values = np.asarray(value)
            what = f"of shape {values.shape} and type {values.dtype}"
        elif isinstance(error, ValueError):
            what = _shown(value)
        else:
            what = f"a {type(value).__name__} that numpy does not take ({' '.join(str(error).split())})"
        return UnfitError(f"{where}is {what}; must be numbers of shape {self._value_shape}")


class _Vector(_Leaf):
    """A Box that is no image. Numbers with a point are left in their own units, whole numbers brought into [0, 1]."""

    def __init__(self, keys: tuple[str | int, ...], space: gym.spaces.Box) -> None:
        super().__init__(keys, space.shape, (math.prod(space.shape),))
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None
        if (scale := _bytes_scale(space)) is not None:
            self.dtype, self.scale = np.dtype(np.uint8), scale
        elif space.dtype is not None and space.dtype.kind in "iu" and _is_bounded(space):
            self._bounds = _low_and_range(space)

    def arrange(self, values: np.ndarray) -> np.ndarray:
        if self._bounds is not None:
            low, extent = self._bounds
            values = (values - low) / extent
        return values.reshape(len(values), -1).astype(self.dtype)

    @property
    def low_and_range(self) -> tuple[np.ndarray, np.ndarray]:
        low, extent = self._bounds or super().low_and_range
        return low.ravel(), extent.ravel()


class _Image(_Leaf):
    """A Box that is an image, in [0, 1], or bytes from 0 on; of a stack of images the channels are put together."""

    kind = "image"

    def __init__(self, keys: tuple[str | int, ...], space: gym.spaces.Box) -> None:
        *stack, first, second, third = space.shape if len(space.shape) > 2 else (1, *space.shape)
        self.channels_last = _has_channels_last(first, second, third)
        channels, *sides = (third, first, second) if self.channels_last else (first, second, third)
        shape = (math.prod(stack) * channels, *sides)
        super().__init__(keys, space.shape, shape)
        self._num_stacked = math.prod(stack)
        # Of a square the third side is the channels; of other images few are, and sides are longer.
        are_square = len({first, second, third}) == 2 and sides[0] == sides[1]
        is_usual = channels <= _USUAL_CHANNELS and min(sides) > _FEW_CHANNELS
        self.is_guessed = len(space.shape) > 2 and not are_square and not is_usual
        self.told = (
            f"observation {f'{self.name!r} ' if self.name else ''}of shape {list(space.shape)} is seen as an image of "
            f"{sides[0]} x {sides[1]} with {channels} channels; if that is wrong, environment.wrappers can turn it"
        )
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None
        if (scale := _bytes_scale(space)) is not None:
            self.dtype, self.scale = np.dtype(np.uint8), scale
        else:
            self._bounds = _low_and_range(space)

    def arrange(self, values: np.ndarray) -> np.ndarray:
        if self._bounds is not None:
            low, extent = self._bounds
            values = (values - low) / extent
        values = self._laid(values)
        return values.view(np.uint8) if values.dtype == np.bool_ else values.astype(self.dtype, copy=False)

    @property
    def low_and_range(self) -> tuple[np.ndarray, np.ndarray]:
        if self._bounds is None:
            return super().low_and_range
        low, extent = (self._laid(bound[None])[0] for bound in self._bounds)
        return low, extent

    def _laid(self, values: np.ndarray) -> np.ndarray:
        """Lay values [N, ...] as the encoded image has them."""
        if self.channels_last:
            values = np.moveaxis(values, -1, -3)
        return values.reshape(len(values), *self.shape)

    def unlaid(self, values: np.ndarray) -> np.ndarray:
        """Lay encoded images [N, ...] as the space has them, [N, stacked, ...]."""
        values = values.reshape(len(values), self._num_stacked, -1, *self.shape[1:])
        return np.moveaxis(values, -3, -1) if self.channels_last else values


class _OneHot(_Leaf):
    """Numbers out of sets, each as the columns of its set, of which one is 1."""

    def __init__(
        self, keys: tuple[str | int, ...], value_shape: tuple[int, ...], starts: np.ndarray, sizes: np.ndarray
    ) -> None:
        total = int(sizes.sum())
        if total > MOST_CATEGORIES:
            name = f" {'.'.join(map(str, keys))!r}" if keys else ""
            raise UserError(
                f"environment.id: observation{name} is one of {total} numbers; at most {MOST_CATEGORIES} can be told "
                "apart"
            )
        super().__init__(keys, value_shape, (total,))
        self._starts, self._sizes = starts, sizes
        self._offsets = np.cumsum(sizes) - sizes

    def arrange(self, values: np.ndarray) -> np.ndarray:
        # What is of uint64 becomes a fraction beside what is not.
        whole = values if values.dtype.kind == "f" else values.astype(np.int64)
        indices = whole.reshape(len(values), -1) - self._starts
        if values.dtype.kind == "f" or (indices < 0).any() or (indices >= self._sizes).any():
            where = f"{self.name!r} " if self.name else ""
            least, most = self._starts, self._starts + self._sizes - 1
            allowed = f"from {least[0]} to {most[0]}" if len(least) == 1 else f"from {least} to {most}"
            raise UnfitError(f"{where}is {values[0]!s}; must be whole numbers {allowed}")
        rows = np.zeros((len(values), self.shape[0]), np.float32)
        np.put_along_axis(rows, indices + self._offsets, np.float32(1), axis=1)
        return rows


def _codes(space: gym.Space[Any], name: str, keys: tuple[str | int, ...] = ()) -> Iterator[_Leaf]:
    """Yield how each part of a space is encoded, in the order of the row.

    Raises:
        UserError: A part cannot be.
    """
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from _codes(part, f"{name}.{key}", (*keys, key))
    elif isinstance(space, gym.spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _codes(part, f"{name}.{index}", (*keys, index))
    elif isinstance(space, gym.spaces.Box) and space.low.size:
        yield _Image(keys, space) if _is_image(space) else _Vector(keys, space)
    elif isinstance(space, gym.spaces.Discrete):
        yield _OneHot(keys, (), np.array([space.start]), np.array([space.n]))
    elif isinstance(space, gym.spaces.MultiDiscrete):
        yield _OneHot(keys, space.shape, space.start.ravel().astype(np.int64), space.nvec.ravel().astype(np.int64))
    elif isinstance(space, gym.spaces.MultiBinary):
        yield _Leaf(keys, space.shape, (math.prod(space.shape),))
    elif isinstance(space, gym.spaces.Box):
        pass
    else:
        part_name = f"observation {name[1:]!r}" if name else "the observation space"
        raise UserError(
            f"environment.id: {part_name} is a {_kind(space)}; must be Box, Discrete, MultiDiscrete, MultiBinary, or a "
            "Dict or Tuple of these (environment.wrappers may leave it out)"
        )


def _is_image(space: gym.spaces.Box) -> bool:
    num_axes = len(space.shape)
    if num_axes not in (2, 3, 4) or not _is_bounded(space):
        return False
    return num_axes > 2 or min(space.shape) >= _LEAST_SIDE


def _has_channels_last(first: int, second: int, third: int) -> bool:
    # Two sides of one length are height and width.
    if first == second != third:
        return True
    if first != second == third:
        return False
    return first > _FEW_CHANNELS or first >= third or first > second


def says_something(space: gym.spaces.Box, bound: np.ndarray) -> np.ndarray:
    """Return which elements of a bound of a Box are one, and not the greatest number there is; of the shape of it."""
    is_one: np.ndarray = np.abs(bound.astype(np.float64)) < NO_BOUND
    if space.dtype is not None and space.dtype.kind in "iu" and space.dtype.itemsize > 2:
        # So gymnasium writes what is infinite.
        extremes = np.iinfo(space.dtype.type)  # type: ignore[type-var]
        is_one &= (bound != extremes.max) & ((bound != extremes.min) | (extremes.min == 0))
    return is_one


def _is_bounded(space: gym.spaces.Box) -> bool:
    """Whether all bounds say something."""
    return bool(says_something(space, space.low).all() and says_something(space, space.high).all())


def _bytes_scale(space: gym.spaces.Box) -> float | None:
    """Return the factor that brings bytes into [0, 1], if the values are bytes that begin at 0 and end alike."""
    if space.dtype == np.bool_:
        return 1.0
    if space.dtype != np.uint8 or space.low.any() or (space.high != space.high.flat[0]).any():
        return None
    return 1 / max(int(space.high.flat[0]), 1)


def _low_and_range(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    extent = high - low
    # What cannot vary is 0.
    return low, np.where(extent > 0, extent, 1)


def _kind(space: gym.Space[Any]) -> str:
    return type(space).__name__


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
