"""An experiment whose runs are killed and stopped on a schedule."""

import pytest

pytest.importorskip("scipy")

from galampi.experiments.outcome import read_outcome
from galampi.experiments.running import run_plan
from galampi.experiments.tables import table

PLAN = """
claim = "faults cost time alone"
refuted_if = "they do not"
job = "cartpole"
num_ranks = 2
compared = "fault"
baseline = "none"
threshold = 100.0
statistic = "faults"
seeds = [1]
[settings]
total_env_steps = 60_000
"checkpoint.every_s" = 1.0
[axes]
fault = ["none", "killed", "stopped"]
[faults]
none = []
killed = [{ kind = "kill", after = 0.3 }]
stopped = [{ kind = "stop", after = 0.3, stop_s = 1.0 }]
"""


@pytest.mark.one_mpi
@pytest.mark.slow
def test_runs_are_hurt_on_schedule_and_recorded(tmp_path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    assert run_plan(folder, tmp_path / "runs", 1, print) == 0
    outcome = read_outcome(folder)
    runs = {arm.value: arm.runs[1] for arm in outcome.groups[""]}
    assert [runs[value].about["num_faults"] for value in ("none", "killed", "stopped")] == [0, 1, 1]
    assert [runs[value].about["status"] for value in runs] == ["finished"] * 3
    assert all(run.about["env_steps"] >= 60_000 for run in runs.values())
    # It was begun again, from a checkpoint or from nothing: what it had done since is done twice.
    assert 0 <= runs["killed"].about["lost_env_steps"] < 60_000
    assert runs["killed"].about["wall_s"] > 0
    assert "killed" in table(outcome)
