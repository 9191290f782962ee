"""Evaluations of runs that were trained."""

import os

import pytest
from launching import assert_sound

from galampi.results import load_checkpoint, open_run
from galampi.results.evaluation import load_evaluation

pytestmark = pytest.mark.one_mpi


@pytest.mark.slow
def test_kept_checkpoints_are_played_and_do_not_disturb_a_resume(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    keep = ("--checkpoint.keep_every_updates", 40)
    train = ("train", small_job, "--out", out, *keep, "--total_env_steps")
    assert galampi(*train, 4000, "--quiet").finish()[0] == 0
    assert galampi(*train, 6000, "--quiet", "--resume").finish()[0] == 0
    assert_sound(out, num_ranks=2, status="finished")
    updates = [int(rank.updates["update"][-1]) for rank in open_run(out).ranks]
    for rank, last in enumerate(updates):
        kept = sorted(int(path.parent.name.removeprefix("update-")) for path in out.glob(f"kept/*/rank-000{rank}.h5"))
        assert kept == list(range(40, last + 1, 40))
    saved = load_checkpoint(out / "kept/update-00000080/rank-0001.h5")
    assert saved["counters"]["update"] == 80
    code, _, errors = galampi("evaluate", out, "--checkpoint", 80, "--episodes", 2, ranks=None).finish()
    assert code == 0, errors
    assert load_evaluation(out / "evaluation.h5").attributes["updates"] == [80, 80]
    code, output, errors = galampi("evaluate", out, "--checkpoint", 81, ranks=None).finish()
    assert (code, output) == (2, "")
    assert "no checkpoint of update 81; kept are those of update 40, 80, 120" in errors


@pytest.mark.slow
def test_a_game_of_atari_without_mpi(galampi, tmp_path) -> None:
    out = tmp_path / "run"
    train = ("--environment.id", "ALE/Pong-v5", "--environment.num_envs", 2, "--total_env_steps", 200)
    assert galampi("train", "--out", out, *train, ranks=1).finish()[0] == 0
    # A machine without any MPI: importing it fails.
    block = tmp_path / "block/mpi4py"
    block.mkdir(parents=True)
    (block / "__init__.py").write_text("raise ImportError('no MPI here')\n")
    evaluate = ("evaluate", out, "--episodes", 1, "--sample", "--stuck-after", 120)
    path = os.pathsep.join([str(block.parent), os.environ.get("PYTHONPATH", "")])
    code, _, errors = galampi(*evaluate, ranks=None, env={"PYTHONPATH": path}).finish()
    assert code == 0, errors
    (score,) = load_evaluation(out / "evaluation.h5").episodes["sample"]["return"]
    assert -21 <= score <= 0
    assert score == int(score)


@pytest.mark.slow
def test_a_run_may_be_given_as_its_file(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    assert galampi("train", small_job, "--out", out, "--total_env_steps", 400, ranks=1).finish()[0] == 0
    code, output, errors = galampi("evaluate", out / "job.h5", "--episodes", 1, ranks=None).finish()
    assert code == 0, errors
    assert f"written: {out / 'evaluation.h5'}" in output
    assert load_evaluation(out / "evaluation.h5").attributes["policy"] == "mean"


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_clear_line(galampi, small_job, tmp_path, damage) -> None:
    out = tmp_path / "run"
    assert galampi("train", small_job, "--out", out, "--total_env_steps", 400, ranks=1).finish()[0] == 0
    path = out / "checkpoint/rank-0000.h5"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes((out / "rank-0000.h5").read_bytes())
    code, output, errors = galampi("evaluate", out, ranks=None).finish()
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"galampi: {path}: ")
    assert not (out / "evaluation.h5").exists()
