"""What a notebook does with a run: pandas, xarray (engine h5netcdf), h5dump. All of them are optional."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import rank_rows
from rank_rows import SKETCH, write_row

from galampi.results import JobFile, RankWriter, open_run
from galampi.results.schema import TABLES

EXTRA = "not installed; `pip install galampi[notebook]` brings it"


@pytest.fixture
def run(tmp_path):
    """Make a run of two ranks with five and six rows, and a third that has not begun to write."""
    JobFile.create(tmp_path, {}, num_ranks=3)
    for rank in range(2):
        with RankWriter(tmp_path / f"rank-{rank:04d}.h5", rank=rank, sketch=SKETCH) as writer:
            for update in range(1, 6 + rank):
                write_row(writer, update)
    return tmp_path


@pytest.fixture
def killed_run(tmp_path):
    """Make a run whose only rank was killed while writing."""
    JobFile.create(tmp_path, {}, num_ranks=1)
    command = [sys.executable, rank_rows.__file__, "endless", tmp_path / "rank-0000.h5"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    return tmp_path


def test_pandas(run):
    pytest.importorskip("pandas", reason=EXTRA)
    opened = open_run(run)
    frame = opened.to_pandas()
    assert list(frame.columns) == ["rank", *opened.ranks[0].updates]
    assert frame["rank"].tolist() == [0] * 5 + [1] * 6
    assert frame["weight"].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6]
    assert frame["sent"].dtype == np.int64
    assert len(opened.to_pandas("episodes")) == 11
    assert opened.to_pandas("sketches").shape == (11, 3 + 8)
    assert opened.to_pandas("restarts").empty
    assert opened.ranks[1].episodes.to_pandas()["return"].tolist() == [1, 2, 3, 4, 5, 6]


def test_xarray_of_all_ranks(run):
    pytest.importorskip("xarray", reason=EXTRA)
    opened = open_run(run)
    updates = opened.to_xarray()
    assert dict(updates.sizes) == {"rank": 2, "update": 6}
    assert updates["weight"].sel(rank=1, update=6) == 6
    assert np.isnan(updates["weight"].sel(rank=0, update=6))
    assert updates["time_s"].attrs["units"] == "s"
    assert opened.to_xarray("episodes").sizes["episode"] == 6
    assert dict(opened.to_xarray("sketches").sizes) == {"rank": 2, "update": 6, "component": 8}
    assert opened.to_xarray("restarts").sizes["restart"] == 0


@pytest.mark.parametrize("table", TABLES)
def test_xarray_opens_the_groups_itself(run, table):
    xarray = pytest.importorskip("xarray", reason=EXTRA)
    pytest.importorskip("h5netcdf", reason=EXTRA)
    with xarray.open_dataset(run / "rank-0001.h5", group=table, engine="h5netcdf") as dataset:
        assert next(iter(dataset.dims)) == TABLES[table].scale
        for column in TABLES[table]:
            assert dataset[column.name].attrs["units"] == column.units
            assert dataset[column.name].dims[0] == TABLES[table].scale
        if table != "restarts":
            assert dataset[TABLES[table].scale].values.tolist() == [1, 2, 3, 4, 5, 6]
            assert dataset["num_rows"] == 6


def test_xarray_opens_the_groups_of_a_killed_file(killed_run):
    xarray = pytest.importorskip("xarray", reason=EXTRA)
    pytest.importorskip("h5netcdf", reason=EXTRA)
    path = killed_run / "rank-0000.h5"
    with xarray.open_dataset(path, group="updates", engine="h5netcdf", driver_kwds={"swmr": True}) as dataset:
        committed = dataset.isel(update=slice(int(dataset["num_rows"])))
        np.testing.assert_array_equal(committed["weight"], np.arange(1, committed.sizes["update"] + 1))
        assert committed.sizes["update"] >= 3


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed (Debian: hdf5-tools)")
def test_h5dump(run):
    command = ["h5dump", "-d", "/ranks/0001/updates/sent", "-y", "-A", "0", "job.h5"]
    shown = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "1, 2, 3, 4, 5, 6" in shown.stdout


@pytest.mark.skipif(shutil.which("h5clear") is None, reason="h5clear is not installed (Debian: hdf5-tools)")
def test_h5dump_of_a_killed_file(killed_run):
    shutil.copy(killed_run / "rank-0000.h5", killed_run / "copy.h5")
    subprocess.run(["h5clear", "-s", "copy.h5"], cwd=killed_run, check=True)
    command = ["h5dump", "-d", "/updates/num_rows", "-y", "copy.h5"]
    shown = subprocess.run(command, cwd=killed_run, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert str(open_run(killed_run).ranks[0].updates.num_rows) in shown.stdout
