"""Energy in reports: readings added up over sources, nodes and restarts."""

import json

import numpy as np
import pytest
from made_runs import make_run, shrink

pytest.importorskip("matplotlib", reason="not installed; `pip install galampi[report]` brings it")
pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

from galampi.analysis.report import _energy_lines, report
from galampi.analysis.summary import Energy, RunReport
from galampi.results import Position, RankWriter, Restart


def energy_of(out):
    """Report a run, and return what its summary says of energy."""
    report([out])
    return json.loads((out / "report" / "summary.json").read_text())["jobs"][0]["runs"][0]["energy"]


@pytest.mark.parametrize("host", ["node-1", "node-2"])
def test_nodes_and_restarts_are_added_up(no_pictures, tmp_path, host):
    energy = {0: {"package-0": 3.6e6}, 1: {"package-0": 7.2e6}}
    out = make_run(tmp_path / "run", energy_j=energy, unread="GPU-1: Not Supported", sketches=False)
    found = energy_of(out)
    assert found["kwh"] == pytest.approx(3.0)
    assert found["reason"] == "node-1: GPU-1: Not Supported; node-1: GPU-1: Not Supported"
    # Killed ten seconds after a checkpoint. The first reading after the restart is greater than the last before it.
    with RankWriter(
        out / "rank-0000.h5",
        rank=0,
        attributes={"hostname": host, "energy_unread": ""},
        resume_at=Position(100, 100, 0),
        restart=Restart(update=100, time_s=10.0, reason="test", weights_restarted=True),
    ) as writer:
        writer.write_energy(10.0, host, {"package-0": 0.0})
        writer.write_energy(15.0, host, {"package-0": 10.8e6})
    found = energy_of(out)
    assert found["kwh"] == pytest.approx(1 + 3 + 2)
    assert found["covered_s"] == 15
    kwh = [(source["host"], source["kwh"]) for source in found["sources"]]
    of_first = [("node-1", 4.0)] if host == "node-1" else [("node-1", 1.0), ("node-2", 3.0)]
    assert kwh == [*of_first, ("node-1", 2.0)]
    # Job time went back to the checkpoint; what was used after it was used by then.
    energy = RunReport(out).energy
    times = [time_s.tolist() for _, _, time_s, _ in energy.series]
    of_first = [[0, 10, 10, 10, 15]] if host == "node-1" else [[0, 10, 10], [10, 15]]
    assert times == [*of_first, [0, 10, 20]]
    for label, time_s, drawn in _energy_lines(energy):
        assert (np.diff(time_s) > 0).all(), label
        assert (np.diff(drawn) >= 0).all(), label


def test_a_source_that_is_lost_on_the_way_does_not_shorten_the_others(no_pictures, tmp_path):
    energy = {0: {"package-0": 7.2e6, "package-0/dram": 3.6e6}}
    found = energy_of(make_run(tmp_path / "run", energy_j=energy, unread="", lost_after={"package-0/dram": 100}))
    assert found["covered_s"] == 20
    assert found["kwh"] == pytest.approx(2.5)
    assert found["kwh_per_million_env_steps"] == pytest.approx(2.5 / (2 * 80 * 200 / 1e6))
    assert found["reason"] == "node-1: package-0/dram: no reading after 10 s"


def test_a_source_of_an_earlier_start_is_not_missed(no_pictures, tmp_path):
    out = make_run(tmp_path / "run", energy_j={0: {"GPU-a": 3.6e6}}, unread="", sketches=False)
    with RankWriter(
        out / "rank-0000.h5",
        rank=0,
        resume_at=Position(200, 200, 0),
        restart=Restart(update=200, time_s=20.0, reason="test", weights_restarted=False),
    ) as writer:
        for time_s, joules in ((20.0, 0.0), (25.0, 3.6e6)):
            writer.write_energy(time_s, "node-1", {"GPU-b": joules})
    found = energy_of(out)
    assert (found["kwh"], found["covered_s"], found["reason"]) == (pytest.approx(2.0), 25, None)


def test_a_run_whose_first_reading_is_still_to_come(no_pictures, tmp_path):
    found = energy_of(make_run(tmp_path / "run", num_updates=30, unread=""))
    assert (found["kwh"], found["covered_s"], found["reason"]) == (None, None, "node-1: no reading yet")


def test_ranks_that_have_left_count_in_all_sums(no_pictures, tmp_path):
    energy = {0: {"package-0": 3.6e6}, 2: {"package-0": 7.2e6}}
    out = make_run(tmp_path / "run", num_ranks=4, num_updates=100, energy_j=energy, unread="")
    before = RunReport(out).summary()
    shrink(out, 2)
    report([out])
    job = json.loads((out / "report" / "summary.json").read_text())["jobs"][0]
    (after,) = job["runs"]
    assert job["num_ranks"] == 2
    for key in ("env_steps", "env_steps_per_s", "num_updates", "num_episodes", "final_return", "messages", "energy"):
        assert after[key] == before[key]
    assert after["env_steps"] == 4 * 80 * 100
    assert after["energy"]["kwh"] == pytest.approx(3.0)
    assert RunReport(out).distance.to_mean.shape == (10, 2)
    assert "there were 2 more" in (out / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("num_nodes", "labels"),
    [
        (2, ["n0 package-0", "n0 package-1", "n1 package-0", "n1 package-1"]),
        (5, ["n0", "n1", "n2", "n3", "n4"]),
        (9, ["9 nodes"]),
    ],
)
def test_energy_of_many_nodes_is_drawn_in_few_lines(num_nodes, labels):
    at_s = np.array([30.0, 60.0])
    series = [
        (f"n{node}", f"package-{package}", at_s + node, np.array([1.0, 2.0]) * (at_s + node) / at_s)
        for node in range(num_nodes)
        for package in range(2)
    ]
    lines = _energy_lines(Energy(series, []))
    assert [label for label, _, _ in lines] == labels
    assert sum(kwh[0] for _, _, kwh in lines) == pytest.approx(2 * num_nodes, rel=0.2)
