"""What a resume does to the tables beside the updates: edges, energy, and columns an older galampi did not write."""

import h5py
import numpy as np
from rank_rows import SKETCH, write_row

from galampi.results import Position, RankWriter, Restart
from galampi.results.reader import RankFile

RESTART = Restart(update=6, time_s=6.0, reason="test", weights_restarted=True)


def write(path):
    with RankWriter(path, rank=0, sketch=SKETCH) as writer:
        for update in range(1, 11):
            write_row(writer, update)


def resume(path):
    with RankWriter(path, rank=0, sketch=SKETCH, resume_at=Position(6, 6, 6), restart=RESTART) as writer:
        write_row(writer, 7)


def test_edges_past_the_checkpoint_go_and_energy_stays(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write(path)
    resume(path)
    rank = RankFile(path, 0)
    assert rank.edges["update"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert rank.edges["entry"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    # Energy of updates that do not count was used all the same.
    assert rank.energy["time_s"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7]
    assert rank.energy["reading"].tolist() == list(range(1, 12))
    assert set(rank.energy["source"]) == {"package-0"}
    assert set(rank.energy["host"]) == {"node-1"}


def test_a_file_of_an_older_galampi_goes_on(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        del file["updates/step_norm"], file["edges"], file["energy"]
    assert np.isnan(RankFile(path, 0).updates["step_norm"]).all()
    resume(path)
    rank = RankFile(path, 0)
    np.testing.assert_array_equal(rank.updates["step_norm"], [np.nan] * 6 + [7.0])
    assert rank.edges["update"].tolist() == [7]
    assert rank.energy.num_rows == 1


def test_energy_of_a_galampi_that_did_not_write_the_host(tmp_path):
    path = tmp_path / "rank-0000.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        del file["energy/host"]
    resume(path)
    assert RankFile(path, 0).energy["host"].tolist() == [""] * 10 + ["node-1"]
