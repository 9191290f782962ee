"""Exports of a run that was trained."""

import json
import re

import pytest

from galampi.results import open_run

pytestmark = pytest.mark.one_mpi


@pytest.mark.slow
def test_everything_a_run_exports(galampi, small_job, tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    pytest.importorskip("safetensors")
    # The one run of a sweep that has begun.
    sweep = tmp_path / "sweep"
    out = sweep / "run"
    (sweep / "jobs").mkdir(parents=True)
    for name in ("0-run.toml", "1-later.toml"):
        (sweep / "jobs" / name).touch()
    assert galampi("train", small_job, "--out", out, "--total_env_steps", 4000, "--quiet").finish()[0] == 0
    files = {name: tmp_path / name for name in ("logs", "scores.json", "policy.safetensors")}
    code, output, errors = galampi(
        *("export", sweep, "--tensorboard", files["logs"], "--rliable", files["scores.json"]),
        *("--policy", files["policy.safetensors"], "--rank", 1),
        ranks=None,
    ).finish()
    assert code == 0, errors
    assert "1 of 2 runs have not begun and are left out" in output
    run = open_run(out)
    num_rows = sum(rank.updates.num_rows + rank.episodes.num_rows for rank in run.ranks)
    # More on a node whose energy can be read.
    assert int(re.search(rf"{files['logs']}: ([\d,]+) events", output).group(1).replace(",", "")) >= num_rows
    assert sorted(path.name for path in files["logs"].glob("run/rank-*")) == ["rank-0000", "rank-0001"]
    ((score,),) = json.loads(files["scores.json"].read_text())["push-sum, 2 ranks"]
    assert 8 < score < 500
    assert "policy of the rank 1" in output
    assert files["policy.safetensors"].stat().st_size > 4 * run.attributes["num_parameters"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "export needs one of --tensorboard, --rliable, --policy, --onnx"),
        (["a", "b", "--policy", "p"], "--policy and --onnx take the policy of one RUN; 2 are given"),
        (["a", "--rliable", "s.json"], "a: no run here"),
    ],
)
def test_mistakes_are_one_clear_line(galampi, arguments, said) -> None:
    code, _, errors = galampi("export", *arguments, ranks=None).finish()
    assert code == 2
    assert errors.count("\n") == 1
    assert said in errors
