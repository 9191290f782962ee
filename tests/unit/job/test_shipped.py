from pathlib import Path

import pytest

from galampi.cli import run
from galampi.errors import JobError, UserError
from galampi.job import find_job, load_job, shipped_jobs

ROOT = Path(__file__).parents[3]


def test_a_name_is_that_of_a_shipped_job_unless_a_file_has_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_job("pong").read_text() == (ROOT / "jobs/pong.toml").read_text()
    assert load_job("pong") == load_job(ROOT / "jobs/pong.toml")
    # What is spelled as a file is one, whether it is there or not.
    for path in ("pong.toml", "./pong.toml", "jobs/pong", "/pong"):
        assert find_job(path) == Path(path)
    Path("pong").write_text("seed = 7\n")
    assert load_job("pong").seed == 7
    # The folder of a run means nothing, that of a sweep is what `submit` goes on with.
    Path("qbert").mkdir()
    assert load_job("qbert") == load_job(ROOT / "jobs/qbert.toml")
    Path("qbert/jobs").mkdir()
    assert find_job("qbert") == Path("qbert")


@pytest.mark.parametrize("command", ["train", "submit", "doctor"])
def test_a_name_of_nothing(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    names = ", ".join(shipped_jobs())
    with pytest.raises(
        JobError, match=rf"^pongg: no such file, and not the name of a shipped job: {names}; did you mean pong\?$"
    ):
        run([command, "pongg"])


def test_every_shipped_job_has_a_line(capsys) -> None:
    assert run(["jobs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted((ROOT / "jobs").glob("*.toml"), key=lambda file: file.stem)
    assert [tuple(line.split(maxsplit=1)) for line in lines] == [
        (file.stem, file.read_text().splitlines()[0].removeprefix("# ")) for file in files
    ]


def test_copies_replace_nothing(tmp_path, capsys) -> None:
    run(["jobs", "--copy", str(tmp_path / "site")])
    for kind in ("jobs", "slurm"):
        copied = {path.name: path.read_bytes() for path in (tmp_path / "site" / kind).iterdir()}
        # What Python has compiled beside them is not copied.
        assert copied == {path.name: path.read_bytes() for path in (ROOT / kind).iterdir() if path.is_file()}
    (tmp_path / "site/jobs/pong.toml").write_text("")
    with pytest.raises(UserError, match=r"site/jobs: is there already; choose another folder$"):
        run(["jobs", "--copy", str(tmp_path / "site")])
    assert (tmp_path / "site/jobs/pong.toml").read_text() == ""
