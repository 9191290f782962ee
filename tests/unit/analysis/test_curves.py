import json
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from made_runs import make_run

import galampi
from galampi import curve, final_return, open_run
from galampi.analysis.export import write_rliable
from galampi.analysis.statistics import episodes, learning_curve
from galampi.errors import ResultsError, UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [open_run(make_run(folder / str(seed), settings={"seed": str(seed)}, slope=seed)) for seed in (1, 2, 3)]


def test_the_curve_of_a_run_is_its_own(runs) -> None:
    for along in ("env_steps", "time_s"):
        found = curve(runs[0], along, 7)
        assert np.array_equal(found.iqm, learning_curve(episodes(runs[0]), along, found.at), equal_nan=True)
        assert np.isnan(found.low).all()
    # All ranks together.
    assert curve(runs[0]).at[-1] == 2 * 200 * 80
    assert found.at[-1] == 20.0
    assert final_return(runs[0])[0] == pytest.approx(found.iqm[-1]) == pytest.approx(curve(runs[0]).iqm[-1])


def test_several_runs_have_an_interval(runs) -> None:
    found = curve(runs)
    finals = [final_return(run)[0] for run in runs]
    assert final_return(runs) == pytest.approx((found.iqm[-1], found.low[-1], found.high[-1]))
    assert found.iqm[-1] == pytest.approx(np.mean(finals))
    # One resample in 27 of three runs is three times the best: more than the 2.5 % beyond the interval.
    assert (found.low[-1], found.high[-1]) == pytest.approx((min(finals), max(finals)))


def test_a_run_without_episodes(tmp_path, runs) -> None:
    fresh = open_run(make_run(tmp_path / "fresh", num_updates=2, settings={"seed": "4"}))
    with pytest.raises(ResultsError, match="fresh: too few episodes have ended"):
        final_return([*runs, fresh])


def test_folders_will_do_and_none_will_not(runs) -> None:
    assert final_return([str(run.path) for run in runs]) == final_return(runs)
    assert final_return(runs[0].path)[0] == final_return(runs[0])[0]
    np.testing.assert_array_equal(curve([run.path for run in runs]).iqm, curve(runs).iqm)
    for ask in (curve, final_return):
        with pytest.raises(UserError, match="none is given"):
            ask([])
        with pytest.raises(ResultsError, match="no run here"):
            ask("nowhere")


def test_copies_of_a_run_are_no_seeds(tmp_path, runs) -> None:
    copy = shutil.copytree(runs[0].path, tmp_path / "copy")
    for ask in (curve, final_return):
        with pytest.warns(UserWarning, match="a copy of .*, not counted"):
            found = ask([runs[0], copy])
        low = found.low[-1] if ask is curve else found[1]
        assert np.isnan(low)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"seed": "4", "environment.id": "Acrobot-v1"}, "environment.id is 'Acrobot-v1', and 'CartPole-v1' in"),
        ({"seed": "4", "gossip.method": "allreduce"}, "gossip.method is 'allreduce', and 'push-sum' in"),
        ({"seed": "1", "checkpoint.every_s": "9"}, "of seed 1, as .* is"),
    ],
)
def test_runs_that_are_no_seeds_of_one_job_are_told(tmp_path, runs, settings, line) -> None:
    other = make_run(tmp_path / "other", settings=settings, slope=4)
    for ask in (curve, final_return):
        with pytest.warns(UserWarning, match=f"other: {line}"):
            ask([*runs, other])


def test_runs_of_another_number_of_ranks_are_told(tmp_path, runs) -> None:
    other = make_run(tmp_path / "other", settings={"seed": "4"}, num_ranks=3)
    with pytest.warns(UserWarning, match="other: number of ranks is 3, and 2 in .*/1; both count"):
        curve([*runs, other])


def test_final_returns_of_runs_that_go_on_are_told(tmp_path, runs) -> None:
    settings = {"seed": "4", "total_env_steps": "64000"}
    going = make_run(tmp_path / "going", settings=settings, status="running")
    line = r"^1 of 2 runs have not finished, .* least far is .*going, running after 50% of its env steps$"
    with pytest.warns(UserWarning, match=line):
        final_return([make_run(tmp_path / "ended", settings={**settings, "seed": "5"}), going])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        final_return(going)
        final_return(runs)


def test_jobs_of_another_version_are_read_all_the_same(tmp_path, runs) -> None:
    folders = [shutil.copytree(run.path, tmp_path / f"old-{run.path.name}") for run in runs]
    for folder in folders:
        with h5py.File(folder / "job.h5", "r+") as file:
            file.attrs["job_toml"] += "\n[a-table-of-old]\nkey = 1\n"
    assert final_return(folders) == final_return(runs)


def test_copies_of_a_run_are_no_scores(tmp_path, runs) -> None:
    copy = open_run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    games, told = write_rliable([*runs, copy], tmp_path / "scores.json", "training")
    assert told == [f"{copy.path}: a copy of {runs[0].path}, not counted"]
    (scores,) = json.loads((tmp_path / "scores.json").read_text()).values()
    assert (games, len(scores)) == (["CartPole-v1"], 3)


def test_a_word_that_is_none_of_the_choices_is_told(runs) -> None:
    with pytest.raises(UserError, match="along is 'steps'; must be one of 'env_steps', 'time_s'"):
        curve(runs, "steps")
    with pytest.raises(UserError, match="align is 'updates'; must be one of 'time', 'update'"):
        runs[0].consensus_distance(align="updates")
    with pytest.raises(UserError, match="table is 'episode'; must be one of 'updates', 'episodes'"):
        runs[0].to_pandas("episode")


def test_the_home_folder_is_known_by_its_sign(runs, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(runs[0].path.parent))
    assert open_run("~/1").path == runs[0].path
    assert open_run(runs[0].path / "job.h5").path == runs[0].path


@pytest.mark.parametrize("package", ["pandas", "xarray"])
def test_what_is_not_installed_is_told(runs, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for table in (runs[0], runs[0].ranks[0].updates):
        with pytest.raises(UserError, match=rf"{package} is not installed: pip install 'galampi\[notebook\]'"):
            getattr(table, f"to_{package}")()


def test_the_package_names_what_it_has() -> None:
    assert {"open_run", "train", "load_job"} <= set(dir(galampi))


def test_reading_needs_neither_torch_nor_mpi() -> None:
    code = (
        "import sys; from galampi import curve, final_return, load_job, open_run\n"
        "assert not {'torch', 'mpi4py', 'gymnasium', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
