"""Learning curves, means over seeds, thinned series."""

import sys

import h5py
import numpy as np
import pytest
from made_runs import make_run, shrink

from galampi.analysis.statistics import (
    PHASES,
    Episodes,
    absent_s,
    binned,
    episodes,
    final_return,
    interquartile_mean,
    learning_curve,
    over_runs,
    since_start,
    throughput,
    total_env_steps,
)
from galampi.errors import UserError
from galampi.results import Position, RankFile, RankWriter, Restart, UpdateRow, open_run
from galampi.results.schema import LEFT_JOB

pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

# What rliable 1.2.0 (with arch 7.2.0) says of these numbers:
#   rly.get_interval_estimates({"a": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=50000,
#                              random_state=np.random.RandomState(1))
# and of the curves, frame by frame, with reps=20000.
TEN = [89.21, 136.11, 141.906, 109.517, 112.424, 85.314, 72.576, 72.989, 70.047, 127.876]
OF_TEN = (99.555, 79.5615, 122.89466667)
OF_FIRST_THREE = (122.40866667, 89.21, 141.906)
CURVES = [
    [49.437, 71.283, 83.6, 99.122],
    [37.98, 61.584, 95.992, 110.184],
    [45.432, 67.607, 75.727, 122.307],
    [37.836, 70.424, 111.37, 84.488],
    [35.93, 62.763, 91.166, 92.851],
    [47.647, 69.716, 91.705, 86.116],
    [56.464, 85.969, 94.366, 102.769],
    [43.866, 43.537, 94.76, 125.031],
    [56.502, 40.227, 85.74, 108.971],
    [45.165, 80.332, 72.557, 102.822],
]
OF_CURVES = (
    [44.92116667, 67.2295, 90.22283333, 102.7865],
    [40.1345, 55.46766667, 82.27533333, 93.313],
    [51.04131667, 74.69239583, 96.23183333, 113.49283333],
)


@pytest.mark.parametrize(("scores", "expected"), [(TEN, OF_TEN), (TEN[:3], OF_FIRST_THREE)])
def test_interval_is_that_of_rliable(scores, expected):
    interval = over_runs(np.array(scores)[:, None])
    assert interval.iqm[0] == pytest.approx(expected[0], abs=1e-6)
    # Both ends are quantiles of random resamples: equal up to their own spread, a small part of the interval.
    tolerance = 0.03 * (expected[2] - expected[1])
    assert interval.low[0] == pytest.approx(expected[1], abs=tolerance)
    assert interval.high[0] == pytest.approx(expected[2], abs=tolerance)


def test_interval_of_curves_is_that_of_rliable():
    interval = over_runs(np.array(CURVES))
    np.testing.assert_allclose(interval.iqm, OF_CURVES[0], rtol=1e-8)
    spread = np.subtract(OF_CURVES[2], OF_CURVES[1])
    assert (np.abs(interval.low - OF_CURVES[1]) < 0.03 * spread).all()
    assert (np.abs(interval.high - OF_CURVES[2]) < 0.03 * spread).all()


def test_one_run_has_no_interval():
    interval = over_runs(np.array([[1.0, 2.0]]))
    assert interval.iqm.tolist() == [1, 2]
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


def test_no_interval_where_a_run_has_no_value_yet():
    interval = over_runs(np.array([[np.nan, 1.0], [3.0, 3.0]]))
    assert np.isnan(interval.low).tolist() == [True, False]
    assert (interval.low[1], interval.high[1]) == (1, 3)


def finished(num: int) -> Episodes:
    at = np.arange(1, num + 1, dtype=float)
    return Episodes(at, 80 * at, at)


def test_learning_curve_is_the_mean_of_the_last_hundred():
    curve = learning_curve(finished(300), "env_steps", np.array([79.0, 80 * 9, 80 * 10, 80 * 100, 80 * 250.5]))
    # 9 episodes are too few; then the mean of 1..10, of 1..100 and of 151..250.
    np.testing.assert_allclose(curve, [np.nan, np.nan, 5.5, 50.5, 200.5])
    assert final_return(finished(300)) == 250.5
    assert final_return(finished(9)) is None


def test_a_huge_return_is_forgotten_once_it_is_a_hundred_episodes_ago():
    episodes = finished(300)
    episodes.returns[:] = -50
    episodes.returns[:5] = -1e20
    curve = learning_curve(episodes, "env_steps", np.array([80 * 99.5, 80 * 104, 80 * 105, 80 * 300]))
    np.testing.assert_allclose(curve, [-5e20 / 99, -1e18, -50, -50])


def test_env_steps_of_an_episode_are_those_of_all_ranks(tmp_path):
    run = open_run(make_run(tmp_path, num_ranks=3, num_updates=20))
    np.testing.assert_allclose(total_env_steps(run, np.array([0.0, 0.05, 1.0, 99.0])), [0, 120, 2400, 4800])
    all_episodes = episodes(run)
    assert len(all_episodes.returns) == 60
    assert (np.diff(all_episodes.time_s) >= 0).all()
    np.testing.assert_allclose(all_episodes.env_steps[-1], 4800)


def test_throughput_of_each_rank(tmp_path):
    at_s, rates = throughput(open_run(make_run(tmp_path, num_updates=50)), num_points=10)
    assert at_s[-1] == 5.0
    np.testing.assert_allclose(rates, np.full((2, 10), 800.0))


def test_ranks_that_have_left_are_counted(tmp_path):
    run = open_run(shrink(make_run(tmp_path, num_ranks=4, num_updates=50), 2))
    assert total_env_steps(run, np.array([2.5, 5.0])).tolist() == [8000, 16000]
    assert len(episodes(run).returns) == 200
    np.testing.assert_allclose(throughput(run, num_points=10)[1], np.full((4, 10), 800.0))


def test_bins_average_and_leave_out_what_is_unknown():
    x = np.arange(8.0)
    y = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 2.0, 4.0])
    at, (means,) = binned(x, [y], 4)
    np.testing.assert_allclose(at, [0.5, 2.5, 4.5, 6.5])
    np.testing.assert_allclose(means, [2, 5, np.nan, 3])
    same, _ = binned(x, [y], 8)
    np.testing.assert_array_equal(same, x)


def test_a_rank_is_no_part_of_the_job_before_it_joins_and_between_leaving_and_coming_back(tmp_path) -> None:
    path = tmp_path / "rank-0000.h5"

    def restarted(position: int, update: int, time_s: float, reason: str = "resumed") -> RankWriter:
        restart = Restart(update=update, time_s=time_s, reason=reason, weights_restarted=True)
        return RankWriter(path, rank=0, resume_at=Position(position, 0, 0), restart=restart)

    def write(writer: RankWriter, *updates: int) -> None:
        for update in updates:
            values = {**dict.fromkeys(UpdateRow._fields, 0), "update": update, "time_s": float(update)}
            writer.write_update(UpdateRow(**values))
        writer.close()

    write(RankWriter(path, rank=0, attributes={"joined_after_update": 0}), 1, 2)
    assert absent_s(RankFile(path, 0)) == 0
    # Restarts without a row between them, of which a record of every tenth update has few; and one that left and came
    # back 10 s later.
    write(restarted(2, 2, 2.0), 3)
    restarted(3, 3, 3.0).close()
    restarted(3, 3, 3.5).close()
    assert absent_s(RankFile(path, 0)) == 0
    restarted(3, 3, 3.5, f"{LEFT_JOB}, which went on with 1 ranks").close()
    assert absent_s(RankFile(path, 0)) == 0
    write(restarted(3, 3, 13.5), 20)
    assert absent_s(RankFile(path, 0)) == 10
    with h5py.File(path, "r+") as file:
        file.attrs["joined_after_update"] = 5
        file["updates/time_s"][0] = 100.0
        for column, _ in PHASES:
            file[f"updates/{column}"][0] = 1.0
    assert absent_s(RankFile(path, 0)) == 100 - len(PHASES) + 10


def test_counts_go_on_after_a_restart():
    assert since_start(np.array([2, 5, 1, 4, 0, 3])).tolist() == [2, 5, 6, 9, 9, 12]


def test_means_over_runs_say_what_they_need(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UserError, match=r"need scipy: pip install 'galampi\[report\]'"):
        interquartile_mean(np.zeros((3, 2)))


def test_a_mean_over_runs_leaves_out_none_that_has_no_value_yet() -> None:
    values = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, np.nan]])
    np.testing.assert_array_equal(interquartile_mean(values), [2.5, np.nan])
    assert f"{interquartile_mean(values[:, 0]):.1f}" == "2.5"
