"""How threads wait."""

import os

import pytest

from galampi.ranks.launched import prepare_libraries


@pytest.mark.parametrize(
    ("there", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_hardly_spin_unless_they_are_told_to(monkeypatch, there, spins) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    prepare_libraries()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    os.environ.pop("GOMP_SPINCOUNT", None)
