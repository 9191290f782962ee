"""Networks of the user's own and with a memory, through whole commands."""

from pathlib import Path

import numpy as np
import pytest

from galampi.results import open_run
from galampi.results.evaluation import load_evaluation

ROOT = Path(__file__).parents[2]


def returns_of(out) -> np.ndarray:
    return np.concatenate([rank.episodes["return"][-50:] for rank in open_run(out).ranks])


@pytest.mark.one_mpi
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
def test_a_network_that_begins_elsewhere_on_each_rank_is_refused(galampi, tmp_path) -> None:
    (tmp_path / "my_nets.py").write_text(DRAWS_ELSEWHERE)
    (tmp_path / "job.toml").write_text('environment.id = "CartPole-v1"\nnetwork.kind = "my_nets:Trunk"\n')
    code, output, errors = galampi("train", tmp_path / "job.toml", "--out", tmp_path / "run").finish()
    assert code == 2, output + errors
    assert "network.kind is 'my_nets:Trunk', which begins with other parameters on each rank" in errors
