"""Networks of the user's own and with a memory, through whole commands."""

from pathlib import Path

import numpy as np
import pytest

from galampi.results import load_checkpoint, open_run
from galampi.results.evaluation import load_evaluation

ROOT = Path(__file__).parents[2]


def returns_of(out) -> np.ndarray:
    return np.concatenate([rank.episodes["return"][-50:] for rank in open_run(out).ranks])


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_example_of_the_documentation_learns_and_is_evaluated(galampi, tmp_path) -> None:
    text = (ROOT / "docs/networks.md").read_text()
    module, job = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "toml"))
    (tmp_path / "my_nets.py").write_text(module)
    (tmp_path / "job.toml").write_text(job)
    code, output, errors = galampi("train", tmp_path / "job.toml", "--out", tmp_path / "run").finish()
    assert code == 0, output + errors
    # A policy that has learnt nothing comes to 22.
    assert returns_of(tmp_path / "run").mean() > 60
    code, output, errors = galampi("evaluate", tmp_path / "run", "--episodes", "2", ranks=None).finish()
    assert code == 0, output + errors
    assert f"imports the module my_nets from {tmp_path / 'my_nets.py'}" in output + errors


@pytest.mark.one_mpi
@pytest.mark.slow
def test_ranks_remember_together_and_go_on_after_a_resume(galampi, tmp_path) -> None:
    for options in (("--total_env_steps", "30_000"), ("--resume", "--total_env_steps", "50_000")):
        code, output, errors = galampi("train", ROOT / "jobs/recall.toml", "--out", tmp_path / "run", *options).finish()
        assert code == 0, output + errors
    assert returns_of(tmp_path / "run").mean() > 0.9
    code, output, errors = galampi("evaluate", tmp_path / "run", "--episodes", "20", ranks=None).finish()
    assert code == 0, output + errors
    assert np.mean(load_evaluation(tmp_path / "run" / "evaluation.h5").episodes["sample"]["return"]) > 0.8


DRAWS_ELSEWHERE = """
import numpy as np
import torch


class Trunk(torch.nn.Linear):
    def __init__(self, encoding):
        super().__init__(encoding.shape[0], 8)
        self.weight.data[:] = torch.from_numpy(np.random.normal(size=self.weight.shape))
"""


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_network_that_begins_elsewhere_on_each_rank_is_refused(galampi, tmp_path) -> None:
    (tmp_path / "my_nets.py").write_text(DRAWS_ELSEWHERE)
    (tmp_path / "job.toml").write_text('environment.id = "CartPole-v1"\nnetwork.kind = "my_nets:Trunk"\n')
    code, output, errors = galampi("train", tmp_path / "job.toml", "--out", tmp_path / "run").finish()
    assert code == 2, output + errors
    assert "network.kind is 'my_nets:Trunk', which begins with other parameters on each rank" in errors


@pytest.mark.one_mpi
@pytest.mark.slow
def test_what_is_normalised_stays_with_the_policy(galampi, tmp_path) -> None:
    """Ranks agree on the moments, a resume on another number of ranks and an evaluation have them."""
    run = tmp_path / "run"
    normalized = ("--learner.normalize_observations", "true", "--learner.normalize_returns", "true")
    job = ("train", "pendulum", "--out", run, *normalized, "--learner.reward_scale")
    code, output, errors = galampi(*job, "0.1", "--total_env_steps", "20_000").finish()
    assert code == 2
    assert "learner.reward_scale does nothing" in output + errors

    job_file = tmp_path / "job.toml"
    text = (ROOT / "jobs/pendulum.toml").read_text()
    assert "normalize_observations = true" in text
    job_file.write_text(text)
    steps = ("--total_env_steps", "20_000")
    code, output, errors = galampi("train", job_file, "--out", run, *steps).finish()
    assert code == 0, output + errors
    parameters = open_run(run).attributes["num_parameters"]
    moments = [load_checkpoint(run / f"checkpoint/rank-000{rank}.h5")["learner"]["z"][parameters:] for rank in (0, 1)]
    # A count; offset, mean and mean square of the three observations and of the running return.
    assert moments[0].shape == (1 + 3 * 4,)
    np.testing.assert_array_equal(moments[0][1:4], moments[1][1:4])
    deviations = [np.sqrt(each[7:10] - each[4:7] ** 2) for each in moments]
    np.testing.assert_allclose(deviations[0], deviations[1], rtol=0.2)
    # The pole's speed lies between -8 and 8, its sine and cosine within -1 and 1.
    assert deviations[0][2] > 1 > deviations[0][0] > 0.3

    changed = ("--learner.normalize_observations", "false")
    code, output, errors = galampi("train", job_file, "--out", run, "--resume", *steps, *changed).finish()
    assert code == 2
    assert "learner.normalize_observations was True" in output + errors
    more = ("--resume", "--total_env_steps", "24_000")
    code, output, errors = galampi("train", job_file, "--out", run, *more, ranks=1).finish()
    assert code == 0, output + errors
    resumed = load_checkpoint(run / "checkpoint/rank-0000.h5")["learner"]["z"][parameters:]
    np.testing.assert_allclose(np.sqrt(resumed[7:10] - resumed[4:7] ** 2), deviations[0], rtol=0.3)
    code, output, errors = galampi("evaluate", run, "--episodes", "2", ranks=None).finish()
    assert code == 0, output + errors
    code, output, errors = galampi("train", "pendulum", "--from", run, *changed, "--out", tmp_path / "other").finish()
    assert code == 2
    assert "its learner.normalize_observations is True; this job's is False" in output + errors
