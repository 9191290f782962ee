"""Distances between ranks from their sketches, against the exact ones."""

import numpy as np

from galampi.results import RankWriter, Sketch, open_run


def write_sketches(out, rank, sketch, times, states):
    """Write a rank file with these sketches of z, one every ten updates."""
    with RankWriter(out / f"rank-{rank:04d}.h5", rank=rank, sketch=sketch) as writer:
        for index, (time_s, z) in enumerate(zip(times, states, strict=True)):
            writer.write_sketch(10 * index, time_s, sketch(z))


def test_consensus_distance_against_the_exact_one(tmp_path):
    rng = np.random.default_rng(3)
    num_parameters = 5000
    start, direction = rng.standard_normal((2, num_parameters))
    offsets = 0.1 * rng.standard_normal((3, num_parameters))
    sketch = Sketch(1024, num_parameters)
    # All ranks move along one line, and are sketched at the same times, to the next update.
    times = [np.arange(0.0, 10.0) + delay for delay in (0.0, 0.1, 0.05)]
    # The last began late, and was silent for a while.
    times[2] = np.delete(times[2], [0, 6])
    for rank in range(3):
        states = [start + offsets[rank] + direction * np.floor(time_s) for time_s in times[rank]]
        write_sketches(tmp_path, rank, sketch, times[rank], states)
    exact = np.linalg.norm(offsets - offsets.mean(axis=0), axis=1)
    found = open_run(tmp_path).consensus_distance()
    np.testing.assert_array_equal(found.at, np.arange(1.0, 10.0))
    near = np.arange(9) != 5
    np.testing.assert_allclose(found.apart_s[near], 0.1)
    assert found.apart_s[5] > 0.9
    assert found.updates[0].tolist() == [10, 10, 0]
    assert found.relative_error == sketch.relative_error
    np.testing.assert_allclose(found.to_mean[near], np.tile(exact, (8, 1)), rtol=5 * sketch.relative_error)
    alone = open_run(tmp_path).consensus_distance(pairs=False)
    assert alone.between.size == 0 and found.between.shape == (3, 3)
    np.testing.assert_array_equal(alone.to_mean, found.to_mean)
    norms = np.array([[np.linalg.norm(start + each + direction * time_s) for each in offsets] for time_s in found.at])
    np.testing.assert_allclose(found.norm[near], norms[near], rtol=5 * sketch.relative_error)


def test_consensus_distance_by_update(tmp_path):
    sketch = Sketch(64, 300)
    z = np.random.default_rng(4).standard_normal((4, 300))
    # In step, but by clocks that differ: by update the distance is zero exactly.
    write_sketches(tmp_path, 0, sketch, [0.0, 1.0, 2.0, 3.0], z)
    write_sketches(tmp_path, 1, sketch, [0.9, 1.9, 2.9], z[:3])
    found = open_run(tmp_path).consensus_distance(align="update")
    assert found.at.tolist() == [0, 10, 20]
    assert found.times_s.tolist() == [0.0, 1.0, 2.0]
    assert (found.to_mean == 0).all()
    assert (open_run(tmp_path).consensus_distance().to_mean > 0).all()


def test_a_rank_that_has_long_been_silent_has_no_distance(tmp_path):
    sketch = Sketch(64, 300)
    z = np.random.default_rng(4).standard_normal((30, 300))
    write_sketches(tmp_path, 0, sketch, np.arange(30.0), z)
    write_sketches(tmp_path, 1, sketch, np.arange(10.0) + 0.1, z[:10])
    assert len(open_run(tmp_path).consensus_distance(last=8).at) == 0
    assert len(open_run(tmp_path).consensus_distance().at) == 10


def test_one_sketch_of_each_rank_is_one_moment(tmp_path):
    sketch = Sketch(64, 300)
    z = np.random.default_rng(4).standard_normal((2, 300))
    write_sketches(tmp_path, 0, sketch, [0.1], z[:1])
    write_sketches(tmp_path, 1, sketch, [0.3], z[:1])
    assert open_run(tmp_path).consensus_distance(last=8).times_s.tolist() == [0.1]
