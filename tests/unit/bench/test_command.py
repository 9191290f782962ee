"""The command of the benchmarks, with contestants that only say what they would have measured."""

import json
import sys
from pathlib import Path

import pytest

from galampi.bench import command, contestants, machine
from galampi.errors import UserError

PHASES_S = {"env_s": 0.02, "act_s": 0.02, "learn_s": 0.02, "gossip_s": 0.001, "record_s": 0.0, "rest_s": 0.0}


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Replace the contestants; return the names of those that ran."""
    ran: list[str] = []

    def training(num_ranks, seconds, *, precision, method="push-sum", disturbance=None):
        ran.append(f"{num_ranks} {precision} {method} {disturbance and disturbance.slow_rank}")
        return {
            "steps_per_s": 500.0 * num_ranks if method == "push-sum" else 700.0,
            "phases_s": PHASES_S,
            "pss_bytes": 300 << 20,
            "first_update_s": 3.0,
        }

    def sb3(python, num_envs, subprocesses, seconds):
        ran.append(f"sb3 {num_envs} {subprocesses}")
        return {"steps_per_s": 400.0 if subprocesses else 350.0, "version": "2"}

    def sample_factory(python, num_envs, seconds):
        ran.append(f"sample factory {num_envs}")
        return {"steps_per_s": 10.0 * num_envs, "version": "2"}

    def exchange(num_ranks, sizes_bytes, seconds, *, network=False):
        times = {f"{key}_s": 1e-3 for key in ("copy", "put", "flag", "message", "step", "allreduce")}
        return [{"num_bytes": size, **times} for size in sizes_bytes]

    monkeypatch.setattr(contestants, "training", training)
    monkeypatch.setattr(contestants, "sb3", sb3)
    monkeypatch.setattr(contestants, "sample_factory", sample_factory)
    monkeypatch.setattr(contestants, "exchange", exchange)
    monkeypatch.setattr(contestants, "emulators", lambda seconds: {"steps_per_s": 4000.0})
    monkeypatch.setattr(machine, "_mpi_library", lambda: "MPICH 5")
    monkeypatch.setattr(command, "resolve_precision", lambda name, device, *, convolutions: "float32")
    return ran


def run(tmp_path, capsys, **options) -> tuple[dict, str]:
    settings = {"num_rounds": 2, "seconds": 1, "part": "all", "peers": command.Peers()} | options
    settings["out"] = tmp_path / "results"
    assert command.bench(**settings) == 0
    (path,) = (tmp_path / "results").iterdir()
    return json.loads(path.read_text()), capsys.readouterr().out


def test_rounds_interleave_all_contestants(measured, tmp_path, capsys) -> None:
    peers = command.Peers(Path(sys.executable), Path(sys.executable))
    results, printed = run(tmp_path, capsys, peers=peers, part="figures")
    # Every other round goes the other way.
    assert measured[: len(measured) // 2] == measured[len(measured) // 2 :][::-1]
    assert measured[0] == "sample factory 8"
    assert "4 float32 allreduce 3" in measured
    assert len(results["rounds"]) == 2
    values = {each["name"]: each["value"] for each in results["figures"]}
    # The best of the peer's settings counts.
    assert values["2 ranks, float32, over Stable-Baselines3 A2C"] == 1000 / 400
    assert values["2 ranks over Sample Factory APPO"] == 1000 / 160
    assert values["2 ranks, bfloat16, over Stable-Baselines3 A2C"] is None
    assert values["gossip over allreduce, 4 ranks, one slowed 3x"] == 2000 / 700
    assert "not measured (this processor has no bfloat16): 2 ranks, bfloat16, over the emulators" in printed
    assert results["machine"]["cores"] >= 1
    assert "exchange" not in results


def test_without_the_peer_its_figures_are_left_out(measured, tmp_path, capsys) -> None:
    results, printed = run(tmp_path, capsys)
    assert not [name for name in measured if name.startswith("sb3")]
    assert "not measured (needs --sb3)" in printed
    assert "not measured (needs --sample-factory)" in printed
    assert {(each["num_ranks"], each["path"]) for each in results["exchange"]} == {
        (ranks, path) for ranks in (2, 3, 4) for path in ("shared memory", "network")
    }


def test_a_part_alone_leaves_the_file_of_the_whole(measured, tmp_path, capsys) -> None:
    whole, _ = run(tmp_path, capsys)
    (path,) = (tmp_path / "results").iterdir()
    command.bench(num_rounds=1, seconds=1, part="exchange", peers=command.Peers(), out=tmp_path / "results")
    assert json.loads(path.read_text()) == whole
    assert path.with_name(f"{path.stem}-exchange.json").exists()


def test_what_was_measured_is_kept_when_a_contestant_fails(measured, tmp_path, capsys, monkeypatch) -> None:
    calls = []

    def fail_in_the_second_round(seconds):
        calls.append(seconds)
        if len(calls) == 2:
            raise UserError("the emulators are gone")
        return {"steps_per_s": 4000.0}

    monkeypatch.setattr(contestants, "emulators", fail_in_the_second_round)
    with pytest.raises(UserError, match="are gone"):
        run(tmp_path, capsys)
    (path,) = (tmp_path / "results").iterdir()
    assert len(json.loads(path.read_text())["rounds"]) == 1


def test_a_wrong_python_for_the_peer_is_one_line(measured, tmp_path, capsys) -> None:
    with pytest.raises(UserError, match=r"--sb3 is /no/python; must be"):
        run(tmp_path, capsys, peers=command.Peers(Path("/no/python")))
    assert measured == []
