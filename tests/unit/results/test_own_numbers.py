"""Numbers of an environment's own in /episodes, and what its simulators raise."""

import numpy as np
import pytest

from galampi.results import Position, RankWriter, Restart, open_run
from galampi.results.reader import RankFile
from galampi.results.schema import MOST_NUMBERS
from galampi.results.writer import MOST_TRACEBACK_BYTES

RESTART = Restart(update=0, time_s=0.0, reason="test", weights_restarted=True)


def write_episode(writer, number, **numbers):
    writer.write_episode(
        episodic_return=number, length=number, env_steps=number, time_s=number, simulator=0, numbers=numbers
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rank-0000.h5"


def test_numbers_become_columns_whenever_they_first_come(path):
    with RankWriter(path, rank=0, attributes={"hostname": "node"}) as writer:
        write_episode(writer, 1)
        writer.flush()
        write_episode(writer, 2, success=1.0)
        # A reader that opens the file while it is written sees both.
        writer.flush()
        assert RankFile(path, 0).episodes["success"].tolist()[1:] == [1]
        write_episode(writer, 3, **{"success": 0.0, "goal/distance": 0.5, "length": 7.0, "rank": 1.0, ".": 8.0})
        write_episode(writer, 4, success=1.0)
    rank = RankFile(path, 0)
    assert rank.attributes["hostname"] == "node"
    assert list(rank.episodes)[6:] == ["_", "goal_distance", "length_", "rank_", "success"]
    np.testing.assert_array_equal(rank.episodes["success"], [np.nan, 1, 0, 1])
    np.testing.assert_array_equal(rank.episodes["goal_distance"], [np.nan, np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(rank.episodes["length_"], [np.nan, np.nan, 7, np.nan])
    assert rank.episodes["length"].tolist() == [1, 2, 3, 4]
    assert set(rank.episodes.to_pandas()) >= {"success", "goal_distance"}


def test_they_go_on_when_a_run_is_resumed(path):
    with RankWriter(path, rank=0) as writer:
        for number in range(1, 5):
            write_episode(writer, number, **{"goal/x": float(number)})
    with RankWriter(path, rank=0, resume_at=Position(0, 2, 0), restart=RESTART) as writer:
        write_episode(writer, 3, **{"goal/x": 30.0})
        write_episode(writer, 4, level=2.0)
    rank = RankFile(path, 0)
    np.testing.assert_array_equal(rank.episodes["goal_x"], [1, 2, 30, np.nan])
    np.testing.assert_array_equal(rank.episodes["level"], [np.nan, np.nan, np.nan, 2])
    assert rank.restarts.num_rows == 1


def test_there_are_not_more_than_fit(path):
    with RankWriter(path, rank=0) as writer:
        write_episode(writer, 1, first=1.0)
        write_episode(writer, 2, **{f"n{k:03}": float(k) for k in range(MOST_NUMBERS + 5)})
        write_episode(writer, 3, another=1.0)
    assert len(RankFile(path, 0).episodes) == 6 + MOST_NUMBERS


def test_runs_with_other_numbers_on_each_rank_are_joined(tmp_path):
    for rank, names in enumerate((["a"], ["b"], [])):
        with RankWriter(tmp_path / f"rank-{rank:04}.h5", rank=rank) as writer:
            write_episode(writer, 1, **dict.fromkeys(names, 1.0))
    frame = open_run(tmp_path).to_pandas("episodes")
    np.testing.assert_array_equal(frame["a"], [1, np.nan, np.nan])
    assert set(open_run(tmp_path).to_xarray("episodes").data_vars) >= {"a", "b", "return"}


def test_what_simulators_raise_is_kept_and_survives_a_resume(path):
    text = "Traceback\n" + "x" * MOST_TRACEBACK_BYTES + "\nZeroDivisionError: \u00e9"
    with RankWriter(path, rank=0) as writer:
        writer.write_failure(update=3, time_s=2.5, simulator=1, simulator_episode=7, error="broke", traceback=text)
    with RankWriter(path, rank=0, resume_at=Position(0, 0, 0), restart=RESTART) as writer:
        writer.write_failure(update=1, time_s=2.0, simulator=0, simulator_episode=1, error="again", traceback="")
    failures = RankFile(path, 0).failures
    assert failures["error"].tolist() == ["broke", "again"]
    assert failures["simulator_episode"].tolist() == [7, 1]
    assert failures["traceback"][0].endswith("x\nZeroDivisionError: ?") and failures["traceback"][1] == ""
