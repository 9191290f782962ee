"""What a process knows before MPI starts."""

import os

import pytest

from galampi.ranks import launched
from galampi.ranks.launched import own_cpus


def test_cores_where_the_system_tells_how_many_but_not_which(monkeypatch) -> None:
    """As macOS does."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert own_cpus() == {0, 1, 2}
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cpus() == {0}


V1 = "2:cpuset:/\n1:cpu,cpuacct:/docker/abc\n"
V2 = "0::/pod/container\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {}, None),
        (V2, {"pod/container/cpu.max": "max 100000", "pod/cpu.max": "max 100000"}, None),
        (V2, {"pod/container/cpu.max": "400000 100000", "pod/cpu.max": "150000 100000"}, 1.5),
        # In a container its own group is the root, whatever its path outside.
        (V2, {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../other\n", {"cpu.max": "200000 100000"}, 2.0),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.0),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "100000"}, None),
        ("", {"cpu.max": "200000 100000"}, None),
    ],
)
def test_the_quota_of_a_container_is_the_least_on_the_way_to_it(tmp_path, groups, files, cores) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert launched._quota(str(tmp_path)) == cores


@pytest.mark.parametrize(("quota", "cores"), [(None, 3), (2.0, 2), (1.5, 2), (0.3, 1), (64.0, 3)])
def test_a_quota_leaves_a_core_at_least(monkeypatch, quota, cores) -> None:
    monkeypatch.setattr(launched, "own_cpus", lambda: frozenset({0, 1, 2}))
    monkeypatch.setattr(launched, "_quota", lambda: quota)
    assert launched.num_cores() == cores
