"""Messages of changes: both ends know the same, the error is a part of the change, and nothing is lost by it."""

import numpy as np
import pytest

from galampi.errors import LostRankError
from galampi.gossip.forms import edge_end

ROUNDED = ["bfloat16", "int8"]
SIZES = [1, 2, 255, 256, 257, 32_768, 70_001]
# Of the change: half a unit of 8 bits of the number; of a block's greatest change over 126, by unbiased rounding.
MOST_ERROR = {"full": 0.0, "bfloat16": 0.003, "int8": 0.012}


def ends(form, size, dtype=np.float32, num_exact=0):
    return [edge_end(form, size, dtype, num_exact=num_exact, seed=seed) for seed in (1, 2)]


def carry(writer, reader, z):
    """Send a vector along an edge, and return what is read."""
    sent = np.ascontiguousarray(writer.write(z)).view(np.uint8)
    box = np.full(reader.num_bytes, 0xAB, np.uint8)
    box[: sent.size] = sent
    return reader.read(box)


def walk(size, dtype=np.float32, num_steps=6):
    random = np.random.default_rng(size)
    z = random.normal(size=size)
    for _ in range(num_steps):
        yield z.astype(dtype)
        z = z + 0.01 * random.normal(size=size)


@pytest.mark.parametrize("form", ["full", *ROUNDED])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_both_ends_know_the_same_to_the_bit(form, dtype, size) -> None:
    writer, reader = ends(form, size, dtype)
    before = None
    for z in walk(size, dtype):
        read = carry(writer, reader, z)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, writer.known)
        if before is None:
            np.testing.assert_array_equal(read, z)
        elif size > 1000:
            error = np.sqrt(np.mean((read - z) ** 2) / np.mean((z - before) ** 2))
            assert error <= MOST_ERROR[form]
        before = z


@pytest.mark.parametrize(("form", "part"), [("bfloat16", 0.51), ("int8", 0.26)])
def test_a_message_of_changes_is_as_small_as_it_says(form, part) -> None:
    writer, _ = ends(form, 70_001)
    first, *later = [writer.write(z).nbytes for z in walk(70_001)]
    assert first == 4 * 70_001
    assert max(later) < part * first


@pytest.mark.parametrize("form", ROUNDED)
def test_rounding_has_no_side(form) -> None:
    change = np.linspace(0, 1e-3, 256, dtype=np.float32)
    errors = []
    for seed in range(400):
        writer = edge_end(form, 256, np.float32, seed=seed)
        writer.write(np.zeros(256, np.float32))
        writer.write(change)
        errors.append(writer.known - change)
    spread = np.std(errors) / np.sqrt(len(errors))
    assert spread > 0
    assert abs(np.mean(errors)) < 5 * spread / np.sqrt(256)
    assert np.abs(np.mean(errors, axis=0)).max() < 6 * spread * 2


@pytest.mark.parametrize("form", ROUNDED)
def test_what_stands_still_is_known_exactly_before_long(form) -> None:
    writer, reader = ends(form, 1000)
    first, z = walk(1000, num_steps=2)
    carry(writer, reader, first)
    for _ in range(12):
        read = carry(writer, reader, z)
    np.testing.assert_allclose(read, z, rtol=0, atol=np.spacing(np.abs(z).max()))


@pytest.mark.parametrize("form", ROUNDED)
def test_numbers_that_must_be_exact_are(form) -> None:
    writer, reader = ends(form, 600, num_exact=3)
    for number, z in enumerate(walk(600)):
        z[-3:] = 1e30, 1e-30, number
        np.testing.assert_array_equal(carry(writer, reader, z)[-3:], z[-3:])


@pytest.mark.parametrize("form", ROUNDED)
def test_a_block_of_nothing_and_numbers_of_all_sizes(form) -> None:
    writer, reader = ends(form, 1024)
    z = np.zeros(1024, np.float32)
    carry(writer, reader, z)
    z[256:512], z[600], z[700] = 1e-42, 1e30, 1e-20
    with np.errstate(all="raise", under="ignore"):
        read = carry(writer, reader, z)
    assert np.isfinite(read).all()
    assert not read[:256].any()
    assert read[600] == pytest.approx(1e30, rel=0.01)


@pytest.mark.parametrize("form", ROUNDED)
@pytest.mark.parametrize("spoil", ["a bit", "one left out"])
def test_a_message_that_does_not_fit_is_noticed(form, spoil) -> None:
    writer, reader = ends(form, 1000)
    first, second, third = walk(1000, num_steps=3)
    carry(writer, reader, first)
    sent = writer.write(second).copy()
    if spoil == "a bit":
        sent[500] ^= 64
    else:
        sent = writer.write(third)
    with pytest.raises(LostRankError, match="does not fit what was known"):
        reader.read(sent)
