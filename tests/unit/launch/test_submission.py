import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from galampi.cli import run
from galampi.errors import UserError
from galampi.launch import submit, sweep
from galampi.launch.submit import Resources, Submission, as_typed, log_pattern, sbatch, sbatch_arguments, slug

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "launch"
HOSTILE = "$(touch owned); `touch owned` 'quoted' \"double\" --wrap=x,y"

SUBMISSIONS = {
    "plain": Submission(
        script=Path("slurm/requeue.sbatch"),
        name="pong",
        log="runs/pong-%j.log",
        arguments=["jobs/pong.toml", "runs/pong"],
    ),
    "everything": Submission(
        script=Path("slurm/sweep.sbatch"),
        name="pong",
        log="runs/sweep/logs/%A_%a.log",
        resources=Resources(
            nodes=2,
            ntasks_per_node=4,
            cpus_per_task=8,
            time="04:00:00",
            partition="gpu",
            account="lab",
            gpus=1,
            launcher="mpirun",
            mpi="pmix_v4",
            save_signal="USR2",
            notice_s=300,
            max_restarts=5,
            nodelist="n[1-2]",
        ),
        arguments=["runs/sweep", "1001"],
        array="0-3,7%2",
    ),
    "hostile": Submission(
        script=Path("slurm/requeue.sbatch"),
        name=HOSTILE,
        log=f"{log_pattern(Path('my runs/100%'))}/x-%j.log",
        arguments=["my jobs/a 'b'.toml", f"my runs/{HOSTILE}"],
    ),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_arguments_are_those_of_the_golden_file(name) -> None:
    path = GOLDEN / f"{name}.txt"
    written = "\n".join(sbatch_arguments(SUBMISSIONS[name])) + "\n"
    assert written == path.read_text(), f"if this is meant: write it to {path}:\n{written}"


def test_every_word_survives_a_shell() -> None:
    arguments = sbatch_arguments(SUBMISSIONS["hostile"])
    assert shlex.split(as_typed(arguments)) == arguments
    assert f"--job-name={HOSTILE}" in arguments


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodes", 0), ("gpus", -1), ("max_restarts", -1), ("mpi", "pmi2,LD_PRELOAD=x"), ("mpi", "a b"), ("notice_s", 0)],
)
def test_values_that_slurm_would_misread_are_refused(field, value) -> None:
    with pytest.raises(UserError, match=field.replace("_", "-")):
        Resources(**{field: value})


def test_slugs_are_safe() -> None:
    assert slug(HOSTILE) == "touch-owned-touch-owned-quoted-double---wrap-x-y"
    assert slug("../..") == "job"
    assert "%" not in slug("100%j")


def test_sbatch_is_missing(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not here"):
        sbatch(["sbatch"])


def test_sbatch_refuses(tmp_path, monkeypatch) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nprint('error: no such\\npartition', file=sys.stderr)\nsys.exit(1)\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch refused: error: no such partition"):
        sbatch([str(fake)])


def test_the_number_is_found_among_other_lines(tmp_path) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text(f"#!{sys.executable}\nprint('welcome to the cluster\\n1234;alpha')\n")
    fake.chmod(0o755)
    assert sbatch([str(fake)]) == "1234"


def test_a_dry_run_touches_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(f"name = {'a' + HOSTILE.replace(chr(34), '')!r}\n")
    assert run(["submit", "a.toml", "--dry-run", "--nodes", "2", "--seed", "7"]) == 0
    assert run(["submit", "a.toml", "--dry-run", "--sweep", "gossip.method=gala,none", "--array-seeds", "3"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
    first, second = capsys.readouterr().out.splitlines()
    assert shlex.split(first)[-2:] == ["--seed", "7"]
    assert "--array=0-5" in shlex.split(second)


def documented(command: str) -> list[list[str]]:
    """Return the calls of a command among the ten steps of the guide."""
    ten_steps = (ROOT / "docs/clusters.md").read_text().split("```sh")[1].split("```")[0].replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in ten_steps.splitlines()]
    return [words[3:] for words in commands if words[:4] == ["python", "-m", "galampi", command]]


def test_the_documented_submissions_are_allowed(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    jobs = [words for words in documented("submit") if words[1].endswith(".toml")]
    assert len(jobs) == 3
    for words in jobs:
        assert run([*words, "--dry-run"]) == 0
    assert "--array=0-119%20" in capsys.readouterr().out


def test_the_documented_reports_are_of_the_runs_of_one_game_each(tmp_path, monkeypatch) -> None:
    (words,) = [words for words in documented("submit") if "--sweep" in words]
    values = [words[i + 1] for i, word in enumerate(words) if word == "--sweep"]
    axes = sweep.parse_axes(values, int(words[words.index("--array-seeds") + 1]), 1)
    jobs = sweep.combinations(ROOT / words[1], {}, axes)
    monkeypatch.chdir(tmp_path)
    folder = Path(words[words.index("--out") + 1])
    sweep.lay_out(folder, jobs)
    for name in jobs:
        (folder / name).mkdir()
    reported = []
    for report in documented("report"):
        names = {path.name for path in Path().glob(report[1])}
        (game,) = {jobs[name].environment.id for name in names}
        assert names == {name for name, job in jobs.items() if job.environment.id == game}
        reported.append(game)
    assert sorted(reported) == sorted(axes["environment.id"])
    # Where two reports would be one.
    assert len({tuple(report[2:]) for report in documented("report")}) == len(reported)


def test_an_installation_without_batch_files_takes_one_that_is_given(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(submit, "_batch_folder", lambda: None)
    monkeypatch.chdir(tmp_path)
    for name in ("a.toml", "own.sbatch"):
        Path(name).touch()
    with pytest.raises(UserError, match="give one with --script"):
        run(["submit", "a.toml", "--dry-run"])
    assert run(["submit", "a.toml", "--dry-run", "--out", "a", "--script", "own.sbatch"]) == 0
    assert shlex.split(capsys.readouterr().out)[-3:] == [
        str(tmp_path / name) for name in ("own.sbatch", "a/submitted.toml", "a")
    ]


def test_a_mistake_in_the_job_shows_before_the_wait(tmp_path) -> None:
    job = tmp_path / "a.toml"
    job.write_text("[learner]\ngamma = 2.0\n")
    with pytest.raises(UserError, match=r"learner\.gamma is 2\.0"):
        run(["submit", str(job), "--dry-run"])


@pytest.mark.parametrize("command", [["submit", "--help"], ["status", "--help"]])
def test_login_node_commands_know_neither_torch_nor_mpi(command) -> None:
    code = (
        "import sys; from galampi.cli import run\n"
        f"try: run({command!r})\nexcept SystemExit: pass\n"
        "import galampi.launch.commands\n"
        "assert not {'torch', 'mpi4py', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_batch_files_are_sound_shell() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is missing")
    files = sorted((ROOT / "slurm").glob("*.sbatch"))
    assert len(files) == 7
    subprocess.run(["shellcheck", *files], check=True)
