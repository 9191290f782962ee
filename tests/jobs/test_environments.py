"""A user's own problem in a folder of its own: trained, resumed, put to use, and told what is wrong with it."""

from pathlib import Path

import numpy as np
import pytest
from launching import assert_sound

from galampi.results import open_run

JOB = """
name = "maze"
precision = "float32"
total_env_steps = 3000
[environment]
id = "my_env:Maze"
num_envs = 3
wrappers = [{ wrapper = "my_env:Shifted", kwargs = { by = 0.5 } }]
[environment.kwargs]
number = "{simulator}"
habit = ""
[record]
sketch_every_s = 0.05
sketch_size = 64
"""
MODULE = """
import os
import gymnasium as gym
import numpy as np
from my_walls import WIDTH

IMPORTED_IN = os.environ.get("NOTES")
if IMPORTED_IN:
    open(IMPORTED_IN, "a").write("imported\\n")


class Maze(gym.Env):
    observation_space = gym.spaces.Dict(
        view=gym.spaces.Box(0, 255, (5, WIDTH, 3), np.uint8), goal=gym.spaces.Discrete(4)
    )
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def __init__(self, number, habit):
        self.number, self.habit = number, habit

    def look(self):
        return {"view": self.np_random.integers(0, 256, (5, WIDTH, 3), np.uint8), "goal": self.now % 4}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return self.look(), {}

    def step(self, action):
        self.now += 1
        if self.habit == "four" and self.now == 7:
            return self.look(), 0.0, False, {}
        if self.habit == "raises" and self.now == 7 and self.number == 4:
            raise ZeroDivisionError("the simulator broke")
        reward = np.nan if self.habit == "nan" and self.now == 7 else float(action[0])
        return self.look(), reward, self.now == 20, False, {"simulator": self.number, "level": self.now}


class Shifted(gym.RewardWrapper):
    def __init__(self, env, by):
        super().__init__(env)
        self.by = by

    def reward(self, reward):
        return reward + self.by
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "problem"
    folder.mkdir()
    (folder / "job.toml").write_text(JOB)
    (folder / "my_env.py").write_text(MODULE)
    (folder / "my_walls.py").write_text("WIDTH = 6\n")
    return folder


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_folder_is_all_that_is_needed(galampi, folder, tmp_path) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, output, errors = galampi("train", folder / "job.toml", "--out", out, cwd=elsewhere).finish()
    assert code == 0, output + errors
    run = open_run(out)
    episodes = [rank.episodes for rank in run.ranks]
    # Numbers of the last info are columns, and simulators are numbered over all ranks.
    assert [set(table["simulator_"]) for table in episodes] == [{0.0, 1.0, 2.0}, {3.0, 4.0, 5.0}]
    assert all(set(table["level"]) == {20.0} for table in episodes)
    assert all((table["return"] >= 10).all() for table in episodes)
    assert {line.split()[0] for line in run.attributes["modules"]} == {"my_env", "my_walls"}

    # Resumed, evaluated and exported from elsewhere, each says what it imports.
    says = f"imports the module my_env from {folder / 'my_env.py'}"
    more = ("train", "--out", out, "--resume", "--total_env_steps", 6000)
    code, output, errors = galampi(*more, cwd=elsewhere).finish()
    assert code == 0, output + errors
    assert errors.count(says) == 1 and "has changed" not in errors
    assert_sound(out, num_ranks=2, status="finished")
    (folder / "my_walls.py").write_text("WIDTH = 3 + 3\n")
    code, output, errors = galampi("evaluate", out, "--episodes", 2, ranks=None, cwd=elsewhere).finish()
    assert code == 0, output + errors
    assert says in output and "module my_walls has changed since the run began" in output

    code, output, errors = galampi("export", out, "--policy", tmp_path / "p.safetensors", ranks=None).finish()
    assert code == 0, output + errors
    assert says in output

    # What only reads a run imports nothing.
    notes = tmp_path / "notes"
    for command in (("report", out), ("status", out), ("export", out, "--tensorboard", tmp_path / "logs")):
        code, output, errors = galampi(*command, ranks=None, env={"NOTES": str(notes)}).finish()
        assert code == 0, output + errors
    page = (out / "report/index.html").read_text()
    assert "Means of what the environment tells of an episode, over the last 100: level 20" in page
    assert not notes.exists()

    # When the folder has moved it is told, and may be given.
    moved = folder.rename(tmp_path / "moved")
    code, output, errors = galampi("evaluate", out, "--episodes", 2, ranks=None).finish()
    assert code == 2
    assert f"environment.id names the module 'my_env', which is neither in {folder} nor installed" in errors
    code, output, errors = galampi("evaluate", out, "--episodes", 2, "--modules-folder", moved, ranks=None).finish()
    assert code == 0, output + errors
    more = ("train", "--out", out, "--resume", "--total_env_steps", 9000, "--modules_folder", moved)
    code, output, errors = galampi(*more).finish()
    assert code == 0, output + errors


@pytest.mark.one_mpi
@pytest.mark.parametrize(
    ("habit", "line"),
    [
        ("four", "step returned a tuple of 4; gymnasium wants (observation, reward, terminated, truncated, info)"),
        ("nan", "step 7 of episode 1: the reward is nan; must be finite"),
    ],
)
@pytest.mark.slow
def test_a_simulator_that_breaks_the_rules_is_told_once(galampi, folder, tmp_path, habit, line) -> None:
    kwargs = f'{{ number = "{{simulator}}", habit = "{habit}" }}'
    command = galampi("train", folder / "job.toml", "--out", tmp_path / "run", "--environment.kwargs", kwargs)
    code, output, errors = command.finish()
    assert code == 1, output + errors
    told = [each for each in errors.splitlines() if each.startswith("galampi: ")]
    assert len(told) == 1 and "my_env:Maze, simulator 0, " in told[0] and line in told[0]
    assert "Traceback" not in errors
    assert open_run(tmp_path / "run").status == "failed"


@pytest.mark.slow
def test_a_job_outlives_failures_but_not_too_many(galampi, folder, tmp_path) -> None:
    out = tmp_path / "run"
    kwargs = '{ number = "{simulator}", habit = "raises" }'
    command = galampi("train", folder / "job.toml", "--out", out, "--environment.kwargs", kwargs)
    code, output, errors = command.finish()
    assert code == 1, output + errors
    told = [each for each in errors.splitlines() if each.startswith("galampi: ")]
    assert len(told) == 1
    assert "simulators of rank 1 have raised 11 times, and environment.max_failures is 10; the last time:" in told[0]
    assert "my_env:Maze, simulator 4, step 7 of episode 11: ZeroDivisionError: the simulator broke" in told[0]
    # Both ranks have saved, and the run goes on if it is given more.
    assert_sound(out, num_ranks=2, status="failed")
    failures = open_run(out).ranks[1].failures
    assert failures.num_rows == 11 and set(failures["simulator"]) == {1}
    assert "in step" in failures["traceback"][0] and set(failures["traceback"][1:]) == {""}
    assert not np.isin(1, open_run(out).ranks[1].episodes["simulator"])
    code, output, errors = galampi("train", "--out", out, "--resume", "--environment.max_failures", 10_000).finish()
    assert code == 0, output + errors
    assert_sound(out, num_ranks=2, status="finished")


@pytest.mark.one_mpi
def test_a_module_that_is_not_there_is_told_before_the_queue(galampi, folder) -> None:
    (folder / "my_env.py").unlink()
    code, output, errors = galampi("submit", folder / "job.toml", "--dry-run", ranks=None).finish()
    assert code == 2, output + errors
    assert f"environment.id names the module 'my_env', which is neither in {folder} nor installed" in errors


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_example_of_the_documentation_learns(galampi, tmp_path) -> None:
    text = (Path(__file__).parents[2] / "docs/environments.md").read_text()
    module, job = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "toml"))
    (tmp_path / "my_env.py").write_text(module)
    (tmp_path / "job.toml").write_text(job)
    code, output, errors = galampi("train", tmp_path / "job.toml", "--out", tmp_path / "run").finish()
    assert code == 0, output + errors
    success = np.concatenate([rank.episodes["success"][-50:] for rank in open_run(tmp_path / "run").ranks])
    # By chance every second door is the right one.
    assert success.mean() > 0.9
