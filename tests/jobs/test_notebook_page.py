"""The cells of docs/notebook.ipynb run, on a run like the one they show."""

import ast
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_mpi

NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"


@pytest.mark.slow
def test_every_cell_runs(galampi, small_job, tmp_path, monkeypatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    for package in ("pandas", "xarray", "h5netcdf"):
        pytest.importorskip(package)
    out = tmp_path / "runs/cartpole"
    assert galampi("train", small_job, "--out", out, "--total_env_steps", 4000, "--quiet").finish()[0] == 0
    assert galampi("evaluate", out, "--episodes", 3, ranks=None).finish()[0] == 0
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    last = None
    for cell in cells:
        # As a notebook does it: run all, and show the value of the last expression.
        *statements, shown = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(shown, ast.Expr):
            last = eval(compile(ast.Expression(shown.value), "cell", "eval"), names)
        else:
            exec(compile(ast.Module([shown], []), "cell", "exec"), names)
        assert cell["outputs"], "the page shows what each cell gives"
    assert list(last["end"]) == ["terminated"] * 3
    names["plt"].close("all")
    names["evaluation"].close()
