"""A planned experiment through its command: trained, interrupted, gone on with, computed again from what is kept."""

import shutil
import signal

import pytest
from launching import wait_for

PLAN = """
claim = "a"
refuted_if = "b"
job = "cartpole"
num_ranks = 2
compared = "gossip.method"
baseline = "allreduce"
threshold = 20.0
seeds = [1, 2]
[settings]
total_env_steps = 6000
[axes]
"gossip.method" = ["push-sum", "allreduce"]
"""


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_plan_is_trained_and_goes_on(galampi, tmp_path) -> None:
    folder, runs = tmp_path / "plan", tmp_path / "runs"
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    command = galampi("experiment", folder, "--runs", runs, ranks=None)
    wait_for(lambda: list((folder / "results").glob("*.h5")))
    command.process.send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    kept = set((folder / "results").glob("*.h5"))
    assert 1 <= len(kept) < 4
    times = {path: path.stat().st_mtime_ns for path in kept}

    # Elsewhere: what is kept is not trained again.
    picture = tmp_path / "picture.png"
    command = galampi("experiment", folder, "--runs", tmp_path / "others", "--picture", picture, ranks=None)
    code, output, errors = command.finish()
    assert code == 0, output + errors
    assert len(list((tmp_path / "others/results/jobs").iterdir())) == 4 - len(kept)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert "4 of 4 runs, 2 ranks each" in output
    assert len((folder / "results/SHA256SUMS").read_text().splitlines()) == 4
    assert picture.exists()

    code, again, errors = galampi("experiment", folder, ranks=None).finish()
    assert code == 0, errors
    assert output.endswith(again)

    (folder / "plan.toml").write_text(PLAN.replace("6000", "7000").replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    again = ("experiment", folder, "--runs", tmp_path / "others")
    code, output, errors = galampi(*again, ranks=None).finish()
    assert code == 2
    assert "is of another run: total_env_steps is 6000 there, and 7000 by" in errors
    shutil.rmtree(folder / "results")
    code, output, errors = galampi(*again, ranks=None).finish()
    assert code == 2
    assert "holds the runs of another plan" in errors
