"""The README's lines for reading runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

README = Path(__file__).parents[3] / "README.md"


def test_the_readmes_lines_read_runs(tmp_path, monkeypatch) -> None:
    pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")
    pytest.importorskip("pandas", reason="not installed; `pip install galampi[notebook]` brings it")
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/pong-3", num_updates=60)
    for seed in range(1, 6):
        folder = tmp_path / f"runs/seeds/method-push-sum_seed-{seed}"
        make_run(folder, num_updates=60, settings={"seed": str(seed)}, sketches=False)
    (lines,) = [
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "consensus_distance" in block
    ]
    # Each line shows something, as in a notebook.
    names: dict = {}
    shown = []
    for line in lines.strip().splitlines():
        if line.startswith(("from ", "run = ", "seeds = ")):
            exec(line, names)
        elif line:
            shown.append(eval(line.partition("  # ")[0], names))
    status, weights, frame, relative, (at, iqm), low, (final, least, greatest) = shown
    assert status == "finished"
    assert weights.tolist() == [0.5] * 60
    assert len(frame) == 120 and frame.columns[0] == "rank"
    assert relative.shape[1] == 2 and (relative > 0).all()
    assert len(at) == len(iqm) and np.isfinite(iqm).any()
    assert len(low) and least < final < greatest
