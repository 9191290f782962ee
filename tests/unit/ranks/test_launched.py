"""What a process knows before MPI starts."""

import os

from galampi.ranks.launched import own_cpus


def test_cores_where_the_system_tells_how_many_but_not_which(monkeypatch) -> None:
    """As macOS does."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert own_cpus() == {0, 1, 2}
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cpus() == {0}
