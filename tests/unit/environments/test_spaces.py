"""Observation spaces: what becomes of each kind, what is an image, and what is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from galampi.environments.spaces import MOST_CATEGORIES, Encoding, Part, UnfitError
from galampi.errors import UserError


@pytest.mark.parametrize(
    ("shape", "dtype", "low", "high", "encoded"),
    [
        ((4, 84, 84), np.uint8, 0, 255, (4, 84, 84)),
        ((84, 84, 3), np.uint8, 0, 255, (3, 84, 84)),
        ((210, 160, 3), np.uint8, 0, 255, (3, 210, 160)),
        ((84, 84), np.uint8, 0, 255, (1, 84, 84)),
        ((4, 84, 84, 3), np.uint8, 0, 255, (12, 84, 84)),
        ((4, 3, 84, 84), np.uint8, 0, 255, (12, 84, 84)),
        ((20, 84, 84), np.uint8, 0, 255, (20, 84, 84)),
        ((10, 10, 4), np.bool_, 0, 1, (4, 10, 10)),
        ((10, 10, 10), np.bool_, 0, 1, (10, 10, 10)),
        ((7, 7, 3), np.uint8, 0, 10, (3, 7, 7)),
        ((96, 96, 3), np.float32, -1, 1, (3, 96, 96)),
        ((9, 9, 2), np.int64, 0, 5, (2, 9, 9)),
        # No images: without bounds, or a stack of vectors.
        ((4, 11, 11), np.float32, -np.inf, np.inf, (484,)),
        ((4, 17), np.float32, -1, 1, (68,)),
        ((5,), np.float64, -1, 1, (5,)),
        ((), np.float32, -1, 1, (1,)),
    ],
)
def test_boxes_are_images_with_channels_first_or_rows(shape, dtype, low, high, encoded):
    space = Box(low, high, shape, dtype)
    encoding = Encoding(space)
    array = encoding(space.sample())
    assert encoding.shape == array.shape == encoding.space.shape == encoded
    assert encoding.dtype == array.dtype == encoding.space.dtype
    (part,) = encoding.parts
    assert part == Part("observation", "image" if len(encoded) == 3 else "vector", encoded, 0)
    assert encoding.is_image == (len(encoded) == 3)


def test_pixels_go_where_they_belong():
    """Channel c of the pixel in row y and column x is at [c, y, x], whatever the order of the space."""
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    last = Encoding(Box(0, 255, (9, 8, 3), np.uint8))(image)
    np.testing.assert_array_equal(last, image.transpose(2, 0, 1))
    stack = np.stack([image, image + 1])
    stacked = Encoding(Box(0, 255, stack.shape, np.uint8))(stack)
    np.testing.assert_array_equal(stacked, np.concatenate([image, image + 1], axis=2).transpose(2, 0, 1))
    np.testing.assert_array_equal(
        Encoding(Box(0, 255, (9, 8, 3), np.uint8)).batch(np.stack([image, image + 1])),
        np.stack([image, image + 1]).transpose(0, 3, 1, 2),
    )


def test_images_and_whole_numbers_are_scaled_by_their_own_bounds():
    for dtype, low, high in (
        (np.uint8, 0, 255),
        (np.uint8, 0, 10),
        (np.uint8, 3, 9),
        (np.float32, -2, 6),
        (bool, 0, 1),
    ):
        encoding = Encoding(Box(low, high, (8, 8, 3), dtype))
        for value, expected in ((low, 0), (high, 1)):
            scaled = encoding(np.full((8, 8, 3), value, dtype)) * np.float32(encoding.scale)
            np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    encoding = Encoding(Box(np.array([-5, 0]), np.array([5, 100]), dtype=np.int64))
    np.testing.assert_array_equal(encoding(np.array([0, 25])), np.float32([0.5, 0.25]))


def test_vectors_of_floats_and_what_has_no_bounds_keep_their_units():
    for space in (
        Box(-8, 8, (3,), np.float32),
        Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (3,), np.int64),
        Box(0, np.iinfo(np.int32).max, (3,), np.int32),
        Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (3,), np.float32),
    ):
        encoding = Encoding(space)
        np.testing.assert_array_equal(encoding(np.array([1, 2, 3], space.dtype)) * encoding.scale, [1, 2, 3])


def test_numbers_out_of_sets_become_columns_of_which_one_is_1():
    np.testing.assert_array_equal(Encoding(Discrete(4, start=-1))(np.int64(1)), [0, 0, 1, 0])
    np.testing.assert_array_equal(Encoding(MultiDiscrete([2, 3], start=[0, 5]))(np.array([1, 7])), [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(Encoding(MultiBinary((2, 2)))(np.array([[1, 0], [1, 1]], np.int8)), [1, 0, 1, 1])


def test_what_has_parts_becomes_one_row_that_says_where_each_is():
    space = Dict(
        camera=Box(0, 255, (8, 9, 3), np.uint8),
        arm=Dict(joints=Box(-np.inf, np.inf, (2,)), grip=Discrete(2)),
        rest=Tuple([MultiBinary(2), Box(0, 4, (1,), np.uint8)]),
    )
    encoding = Encoding(space)
    by_name = {part.name: part for part in encoding.parts}
    assert set(by_name) == {"camera", "arm.joints", "arm.grip", "rest.0", "rest.1"}
    assert (by_name["camera"].kind, by_name["camera"].shape) == ("image", (3, 8, 9))
    assert encoding.shape == (3 * 8 * 9 + 2 + 2 + 2 + 1,)
    observation = space.sample()
    row = encoding(observation)
    assert row.dtype == np.float32
    camera = row[by_name["camera"].columns].reshape(3, 8, 9)
    np.testing.assert_allclose(camera, observation["camera"].transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(row[by_name["arm.joints"].columns], observation["arm"]["joints"])
    assert row[by_name["arm.grip"].columns].argmax() == observation["arm"]["grip"]
    assert row[by_name["rest.1"].columns] == np.float32(observation["rest"][1] / 4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Text(5), "the observation space is a Text; must be Box"),
        (Dict(a=Discrete(2), mission=Text(5)), "observation 'mission' is a Text; must be Box"),
        (Tuple([Discrete(2), gym.spaces.Sequence(Discrete(2))]), "observation '1' is a Sequence; must be Box"),
        (gym.spaces.Graph(Discrete(2), None), "the observation space is a Graph"),
        (gym.spaces.OneOf([Discrete(2)]), "the observation space is a OneOf"),
        (Dict(), "is empty"),
        (Box(0, 1, (0,)), "is empty"),
        (Dict(room=Discrete(MOST_CATEGORIES + 1)), "observation 'room' is one of 65537 numbers"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_one_line(space, message):
    with pytest.raises(UserError, match=message) as error:
        Encoding(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (Box(-1, 1, (3,)), np.zeros(4), r"is of shape \(4,\) and type float64; must be numbers of shape \(3,\)"),
        (Box(-1, 1, (3,)), None, r"is of shape \(\) and type object"),
        (Box(-1, 1, (3,)), [[1], [2, 3]], r"is \[\[1\], \[2, 3\]\]; must be numbers of shape \(3,\)"),
        (Discrete(4), 4, "is 4.*must be whole numbers from 0 to 3"),
        (Discrete(4), 0.5, "must be whole numbers from 0 to 3"),
        (MultiDiscrete([2, 3]), np.array([0, -1]), r"must be whole numbers from \[0 0\] to \[1 2\]"),
        (Dict(a=Discrete(4), b=Discrete(2)), {"a": 1}, "has no 'b'"),
        (Dict(a=Dict(b=Discrete(4))), {"a": 1}, "has no 'a.b'"),
        (Dict(a=Discrete(4), b=Box(-1, 1, (2,))), {"a": 1, "b": np.zeros(3)}, "'b' is of shape"),
        (Tuple([Discrete(4)]), (), "has no '0'"),
    ],
)
def test_an_observation_that_is_not_of_its_space_is_told(space, observation, message):
    with pytest.raises(UnfitError, match=message):
        Encoding(space)(observation)


class Raises:
    """Something that numpy asks for numbers in vain."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call\nnumpy()")


@pytest.mark.parametrize("value", [Raises(), torch.ones(2, requires_grad=True)])
def test_what_numpy_does_not_take_is_told(value):
    line = rf"is a {type(value).__name__} that numpy does not take \(Can't call numpy\(\).*; must be numbers of shape"
    for encoding, observation in (
        (Encoding(Box(-1, 1, (2,))), value),
        (Encoding(Dict(a=Box(-1, 1, (2,)), b=Discrete(2))), {"a": value, "b": 1}),
    ):
        with pytest.raises(UnfitError, match=line) as error:
            encoding(observation)
        assert "\n" not in str(error.value)


def test_numbers_without_a_sign_are_numbers_out_of_a_set():
    assert Encoding(Discrete(4))(np.uint64(3)).tolist() == [0, 0, 0, 1]
    space = MultiDiscrete([3, 2], dtype=np.uint64)
    assert Encoding(space)(np.array([2, 0], np.uint64)).tolist() == [0, 0, 1, 1, 0]


def test_where_the_channels_of_an_image_are_is_told_unless_it_is_as_usual():
    grids = {(9, 8, 29): (29, 9, 8), (5, 4, 26): (26, 5, 4), (10, 12, 29): (10, 12, 29), (7, 9, 3): (3, 7, 9)}
    for shape, encoded in grids.items():
        encoding = Encoding(Box(0, 1, shape, np.float32))
        assert encoding.shape == encoded
        channels, height, width = encoded
        (line,) = encoding.guesses
        assert f"shape {list(shape)} is seen as an image of {height} x {width} with {channels} channels" in line
    for shape in [(4, 84, 84), (210, 160, 3), (3, 64, 96), (10, 10, 6), (4, 7, 7, 3), (64, 48), (5,)]:
        assert not Encoding(Box(0, 255, shape, np.uint8)).guesses
