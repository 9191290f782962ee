"""Sketches: linear, as exact as stated, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galampi.results import Sketch

NUM_PARAMETERS = 9_600
SKETCHES = {size: Sketch(size, NUM_PARAMETERS) for size in (64, 1000, 1024)}


def test_of_a_vector_by_hand():
    sketch = Sketch(4, 3)
    units = [sketch(unit) for unit in np.eye(3)]
    for unit in units:
        assert sorted(abs(unit)) == [0, 0, 0, 1]
    np.testing.assert_array_equal(sketch(np.array([2.0, -3.0, 5.0])), 2 * units[0] - 3 * units[1] + 5 * units[2])


def test_hash_is_frozen():
    # Never change these numbers: sketches of old files could no longer be compared with new ones.
    np.testing.assert_array_equal(Sketch(8, 24)(np.arange(24.0)), [0, -25, 21, 31, 5, 20, -10, 20])
    sums = Sketch(1024, 1_000_003)(np.arange(1_000_003.0) % 97)
    assert sums[[0, 1, 511, 1023]].tolist() == [1044, 1581, 747, 848]


def test_is_a_function_of_the_index_alone():
    # A longer vector that ends in zeros has the same sketch.
    z = np.random.default_rng(0).standard_normal(500)
    np.testing.assert_array_equal(Sketch(64, 500)(z), Sketch(64, 900)(np.append(z, np.zeros(400))))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_linear(seed, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, NUM_PARAMETERS)) * scale
    sketch = SKETCHES[1024]
    np.testing.assert_allclose(sketch(a - b), sketch(a) - sketch(b), atol=1e-11 * scale)
    np.testing.assert_allclose(sketch(3 * a), 3 * sketch(a), atol=1e-11 * scale)


def differences(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the difference of two parameter vectors, of the kinds that networks have."""
    match kind:
        case "dense":
            return rng.standard_normal(NUM_PARAMETERS)
        case "layers":
            # Layers of very different scale.
            return rng.standard_normal(NUM_PARAMETERS) * np.repeat([1e-3, 1.0, 0.1, 10.0], NUM_PARAMETERS // 4)
        case "rank one":
            return np.outer(rng.standard_normal(80), rng.standard_normal(120)).ravel()
        case "one sign":
            # A drift: the products of its components do not vanish by themselves.
            return abs(rng.standard_normal(NUM_PARAMETERS))
        case "heavy tail":
            return rng.standard_t(3, NUM_PARAMETERS)
        case "strided":
            # Some output units only, at a stride that divides the size of the sketch.
            return rng.standard_normal(NUM_PARAMETERS) * (np.arange(NUM_PARAMETERS) % 32 == 5)
    raise ValueError(kind)


KINDS = ("dense", "layers", "one sign", "rank one", "heavy tail", "strided")


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([64, 1000, 1024]),
    distance=st.floats(1e-3, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_distance_is_within_the_stated_error(seed, kind, size, distance):
    rng = np.random.default_rng(seed)
    difference = differences(kind, rng)
    difference *= distance / np.linalg.norm(difference)
    z = rng.standard_normal(NUM_PARAMETERS)
    sketch = SKETCHES[size]
    estimate = np.linalg.norm(sketch(z + difference) - sketch(z))
    # Five standard errors.
    assert abs(estimate / distance - 1) < 5 * sketch.relative_error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 1024])
def test_the_stated_error_is_the_standard_error(kind, size):
    sketch = SKETCHES[size]
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(150):
        difference = differences(kind, rng)
        errors.append(np.linalg.norm(sketch(difference)) / np.linalg.norm(difference) - 1)
    assert sketch.relative_error == pytest.approx((2 / size) ** 0.5 / 2)
    assert np.sqrt(np.mean(np.square(errors))) < 1.2 * sketch.relative_error
    assert np.sqrt(np.mean(np.square(errors))) > 0.7 * sketch.relative_error


def test_equal_vectors_have_distance_zero():
    z = np.random.default_rng(0).standard_normal(NUM_PARAMETERS).astype(np.float32)
    np.testing.assert_array_equal(SKETCHES[1024](z), SKETCHES[1024](z.copy()))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="shape of z is"):
        SKETCHES[64](np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="size is 0"):
        Sketch(0, 3)
