"""`doctor` compares all clocks with each other, not with rank 0's alone."""

import time

import pytest


@pytest.mark.mpi(ranks=3)
def test_clocks_before_and_behind_rank_0(comm, monkeypatch) -> None:
    from galampi.launch.doctor import check_clocks

    true_s = time.time
    monkeypatch.setattr(time, "time", lambda: true_s() + (0.0, 0.4, -0.4)[comm.rank])
    clocks = check_clocks(comm)
    state, skew_s = comm.bcast((clocks.state, clocks.figures["skew_s"]))
    assert state == "warning"
    assert skew_s == pytest.approx(0.8, abs=0.05)
