"""The experiments of the repository: their files are whole, and the documentation says what they come to."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from galampi.experiments.outcome import read_outcome
from galampi.experiments.speed import is_about_speed, speed_table
from galampi.experiments.tables import table

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted(path.parents[1] for path in (ROOT / "experiments").glob("*/results/SHA256SUMS"))


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_what_is_kept_is_what_was_recorded(folder) -> None:
    for part in ("tuning", "results"):
        files = sorted([*(folder / part).glob("*.h5"), *(folder / part).glob("*.json")])
        if files:
            lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
            assert (folder / part / "SHA256SUMS").read_text().splitlines() == lines


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_the_documentation_says_what_they_come_to(folder) -> None:
    found = speed_table(folder) if is_about_speed(folder) else table(read_outcome(folder))
    assert found in (ROOT / "docs/evidence.md").read_text()


def test_what_is_kept_is_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "experiments").rglob("*.h5")) < 60 << 20
