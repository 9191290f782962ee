import json
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from galampi.cli import run
from galampi.errors import UserError
from galampi.job import load_job, parse_job
from galampi.launch import sweep
from galampi.launch.axes import combinations, parse_axes
from galampi.launch.folder import lay_down
from galampi.launch.submit import (
    Resources,
    Submission,
    as_typed,
    how_to_watch,
    log_pattern,
    refuse_short_stretches,
    sbatch,
    sbatch_arguments,
    slug,
)
from galampi.results import JobFile, RankWriter, save_checkpoint

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
    "chain": Submission(
        script=Path("slurm/requeue.sbatch"),
        name="pong",
        log="/runs/pong-%j.log",
        resources=Resources(
            launcher="mpirun",
            chain=3,
            sbatch_options=("--qos=long", "--mem", "8G", "--exclusive", "-d", "afterok:9", "--export=NONE"),
        ),
        arguments=["/runs/pong/submitted.toml", "/runs/pong"],
        stretch=2,
        after="12",
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
    [
        *(("nodes", 0), ("gpus", -1), ("max_restarts", -1), ("notice_s", 0), ("chain", 0)),
        *(("mpi", "pmi2,LD_PRELOAD=x"), ("mpi", "a b")),
    ],
)
def test_values_that_slurm_would_misread_are_refused(field, value) -> None:
    with pytest.raises(UserError, match=field.replace("_", "-")):
        Resources(**{field: value})


def test_slugs_are_safe() -> None:
    assert slug(HOSTILE) == "touch-owned-touch-owned-quoted-double---wrap-x-y"
    assert slug("../..") == "job"
    assert "%" not in slug("100%j")


@pytest.mark.parametrize(
    ("asked", "exported"),
    [
        ([], "ALL,GALAMPI_MPI=pmi2"),
        (["--export=ALL,A=1"], "ALL,A=1,GALAMPI_MPI=pmi2"),
        (["--export", "A"], "A,GALAMPI_MPI=pmi2"),
        (["--export=NIL"], "GALAMPI_MPI=pmi2"),
    ],
)
def test_what_is_exported_is_exported_once(asked, exported) -> None:
    resources = Resources(mpi="pmi2", sbatch_options=tuple(asked))
    made = sbatch_arguments(Submission(script=Path("a"), name="a", log="a", resources=resources))
    assert [word for word in made if word.startswith("--export")] == [f"--export={exported}"]
    assert made[-1] == "a"


@pytest.mark.parametrize(
    ("given", "in_file", "refused"),
    [
        ({"time": "2"}, "--signal=B:USR1@120", True),
        ({"time": "00:01:30"}, "--signal=B:USR1@120", True),
        ({"time": "3"}, "--signal=B:USR1@120", False),
        ({"time": "0-0:2"}, "--signal=B:USR1@120", True),
        ({"time": "1-0"}, "--signal=B:USR1@120", False),
        ({"time": "UNLIMITED"}, "--signal=B:USR1@120", False),
        ({"time": "0"}, "--signal=B:USR1@120", False),
        ({"notice_s": 600}, "--time=10:00 # CHANGE", True),
        ({"notice_s": 599}, "--time=10:00 # CHANGE", False),
        ({"time": "2", "notice_s": 60}, "--signal=B:USR1@120", False),
        ({"sbatch_options": ("-t", "1")}, "--signal=USR1@60", True),
        ({"sbatch_options": ("--time=5", "--signal=B:USR1@300")}, "--time=04:00:00 --signal=B:USR1@120", True),
        ({}, "--time=04:00:00 --signal=B:USR1@120", False),
        ({"time": "1"}, "", False),
    ],
)
def test_a_limit_that_its_notice_uses_up_is_refused(tmp_path, given, in_file, refused) -> None:
    script = tmp_path / "a.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH {in_file}\n#SBATCH --requeue\ntrue\n")
    with pytest.raises(UserError, match="must be longer than the notice") if refused else nullcontext():
        refuse_short_stretches(script, Resources(**given))


def test_a_chain_does_not_go_back_to_the_queue() -> None:
    with pytest.raises(UserError, match="--chain and --max-restarts"):
        Resources(chain=2, max_restarts=3)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A current folder, and an sbatch that numbers its jobs from 70 and keeps what it was called with."""
    fake = tmp_path / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a+') as file:\n"
        "    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=file)\n"
        "    file.seek(0)\n    print(69 + len(file.readlines()))\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(sweep, "max_array_index", lambda: 1000)
    work = tmp_path / "100%j %u"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "a.toml").write_text("name = 'a'\nseed = 7\n")
    return work


def called(slurm: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Return arguments and environment of each call of sbatch."""
    path = slurm.parent / "calls"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_was_checked_is_what_runs(slurm, capsys) -> None:
    """However the job file changes while the job waits; and a second job with the same folder changes nothing."""
    submitted = ["submit", "a.toml", "--out", "run", "--learner.gamma", "0.5"]
    run(submitted)
    told = f"{slurm}/run: a job was submitted to begin it, and has not"
    assert told not in capsys.readouterr().out
    Path("a.toml").write_text("seed = 8\n")
    run(submitted)
    assert told in capsys.readouterr().out
    Path("a.toml").write_text("name = 'a'\nseed = 7\n")
    run(submitted)
    files = [Path(arguments[-4]) for arguments, _ in called(slurm)]
    assert [str(path.relative_to(slurm)) for path in files] == [
        *("run/submitted.toml", "run/submitted-2.toml", "run/submitted.toml")
    ]
    assert [load_job(path).seed for path in files] == [7, 8, 7]
    assert load_job(files[0]).learner.gamma == 0.5
    assert {path.name for path in (slurm / "run").iterdir()} == {"submitted.toml", "submitted-2.toml"}


def test_paths_are_whole_and_mean_themselves(slurm) -> None:
    """To Slurm's patterns, and to a job that runs in another folder."""
    Path("own.sbatch").touch()
    run(["submit", "a.toml", "--script", "own.sbatch", "--out", "my run", "--", "--chdir=/"])
    run(["submit", "a.toml", "--out", "sweep", "--array-seeds", "2"])
    single, array = (arguments for arguments, _ in called(slurm))
    whole = str(slurm).replace("%", "%%")
    assert f"--output={whole}/my-run-%j.log" in single
    assert single[-4:] == ["--chdir=/", str(slurm / "own.sbatch"), f"{slurm}/my run/submitted.toml", f"{slurm}/my run"]
    assert f"--output={whole}/sweep/logs/%A_%a.log" in array
    assert array[-2:] == [str(slurm / "sweep"), "0"]


def test_submissions_of_one_second_have_folders_of_their_own(slurm, monkeypatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    for more in ([], [], ["--array-seeds", "2"]):
        run(["submit", "a.toml", *more])
    first, second, array = (arguments for arguments, _ in called(slurm))
    assert [first[-1], second[-1], array[-2]] == [
        str(slurm / f"runs/a-20260101-120000{end}") for end in ("", "-2", "-3")
    ]


def test_a_folder_that_slurm_has_no_pattern_for(slurm) -> None:
    for more in ([], ["--array-seeds", "2"]):
        with pytest.raises(UserError, match="backslash"):
            run(["submit", "a.toml", "--out", "back\\slash/run", *more])
    assert {path.name for path in slurm.iterdir()} == {"a.toml"}


def test_how_to_watch_can_be_typed() -> None:
    single = how_to_watch(["7"], Path("/a b"), "/a b/50%%j-%j.log")
    assert "tail -f '/a b/50%j-7.log'\n" in single
    assert "tail -f /runs/7_*.log\n" in how_to_watch(["7"], Path("/runs"), "/runs/%A_%a.log")
    chain = how_to_watch(["7", "9"], Path("/a"), "/a b/%j.log")
    assert "tail -f '/a b/'*.log\n" in chain
    assert "scancel 7 9;" in chain


def test_a_job_is_submitted_as_if_from_nowhere(slurm, monkeypatch) -> None:
    """From inside another job: sbatch would hand on what that is told of itself."""
    inherited = {
        **{"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "7", "SLURM_RESTART_COUNT": "20"},
        **{"SLURM_EXPORT_ENV": "NONE", "PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1"},
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "OMPI_MCA_osc": "rdma", "SBATCH_QOS": "long", "GALAMPI_LAUNCHER": "mpirun"}
    for name, value in {**inherited, **kept}.items():
        monkeypatch.setenv(name, value)
    run(["submit", "a.toml"])
    ((_, environment),) = called(slurm)
    assert not inherited.keys() & environment.keys()
    assert kept.items() <= environment.items()
    # A login shell may set what srun is to do.
    monkeypatch.delenv("SLURM_JOB_ID")
    run(["submit", "a.toml", "--out", "other"])
    assert called(slurm)[-1][1]["SLURM_EXPORT_ENV"] == "NONE"


def test_a_chain_is_jobs_that_wait_for_each_other(slurm, capsys) -> None:
    run(["submit", "a.toml", "--out", "run", "--chain", "3", "--", "--mail-type=FAIL"])
    calls = [arguments for arguments, _ in called(slurm)]
    of_each = [[word for word in call if word.startswith(("--dep", "--export", "--no-re", "--mail"))] for call in calls]
    assert of_each == [
        ["--no-requeue", "--export=ALL,GALAMPI_CHAIN=1/3", "--mail-type=FAIL"],
        ["--no-requeue", "--export=ALL,GALAMPI_CHAIN=2/3", "--dependency=afterany:70", "--mail-type=FAIL"],
        ["--no-requeue", "--export=ALL,GALAMPI_CHAIN=3/3", "--dependency=afterany:71", "--mail-type=FAIL"],
    ]
    assert len({tuple(call[-2:]) for call in calls}) == 1
    assert "submitted jobs 70 71 72; its run will be" in capsys.readouterr().out


def test_a_chain_of_a_sweep(slurm, monkeypatch) -> None:
    """Its arrays wait for each other; a run of it counts as running while one of them trains it."""
    run(["submit", "a.toml", "--out", "sweep", "--array-seeds", "2", "--chain", "2", "--", "--qos=long"])
    assert [[word for word in call if word.startswith(("--dep", "--qos"))] for call, _ in called(slurm)] == [
        *(["--qos=long"], ["--dependency=afterany:70", "--qos=long"])
    ]
    options = sweep.last_options(slurm / "sweep")
    assert options.resources == Resources(chain=2, sbatch_options=("--qos=long",))
    squeue = "70 0 RUNNING\n71 0 PENDING\n71 1 PENDING\n"
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, squeue, ""))
    assert [swept.state for swept in sweep.read_sweep(slurm / "sweep")] == ["running", "queued"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda out: out.write_text(""), "Not a directory"),
        (lambda out: (out.mkdir(), (out / "notes.txt").touch()), "not empty: it holds notes.txt"),
        (
            lambda out: ((out / "checkpoint").mkdir(parents=True), (out / "checkpoint/a.pt").touch()),
            r"holds checkpoint/a\.pt, where a run keeps its checkpoints, and no job\.h5",
        ),
        (lambda out: (out / "kept").mkdir(parents=True), "not empty: it holds kept"),
        (lambda out: (out.mkdir(), (out / "job.h5").touch()), "job.h5: no HDF5 file"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_before_the_wait(slurm, make, said) -> None:
    make(Path("run"))
    for more in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=said) as caught:
            run(["submit", "a.toml", "--out", "run", *more])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"a\.toml/run: cannot be written: "):
        run(["submit", "a.toml", "--out", "a.toml/run"])
    assert not called(slurm)


def test_what_is_no_run_s_does_not_matter(slurm) -> None:
    Path("run").mkdir()
    for name in (".nfs01", ".a.toml.swp", "a.toml~", "galampi-12.log", "slurm-12.out", "lock", "job.h5.part"):
        (Path("run") / name).touch()
    RankWriter(Path("run/rank-0000.h5"), rank=0).close()
    # As a full disk, a kill after the first checkpoints and one while a run was set aside leave it.
    Path("run/rank-0001.h5").touch()
    save_checkpoint(Path("run/checkpoint/rank-0000.h5"), {"counters": {"update": 0}})
    Path("run/before-1").mkdir()
    assert run(["submit", "a.toml", "--out", "run"]) == 0


def test_a_run_that_is_there_goes_on_by_its_own_job(slurm, capsys) -> None:
    JobFile.create(Path("run"), {"job_toml": "seed = 3\n"}, 1)
    assert run(["submit", "a.toml", "--out", "run", "--learner.gamma", "0.5"]) == 0
    assert f"goes on by its own job, not by {slurm}/a.toml, which has another name, seed" in capsys.readouterr().out
    job = load_job(slurm / "run/submitted.toml")
    assert (job.seed, job.learner.gamma) == (3, 0.5)
    JobFile.set_status(Path("run"), "finished")
    with pytest.raises(UserError, match="finished already; raise --total_env_steps"):
        run(["submit", "a.toml", "--out", "run"])
    assert run(["submit", "a.toml", "--out", "run", "--total_env_steps", "1000000"]) == 0


def test_a_job_that_slurm_refuses_leaves_no_folder(slurm) -> None:
    Path("there").mkdir()
    (slurm.parent / "bin/sbatch").write_text("#!/bin/sh\necho 'no such partition' >&2\nexit 1\n")
    for words in ([], ["--out", "run"], ["--out", "there"]):
        with pytest.raises(UserError, match="no such partition"):
            run(["submit", "a.toml", *words])
    assert not Path("run").exists() and not list(Path("runs").iterdir()) and not list(Path("there").iterdir())
    # What another one waits with stays.
    JobFile.create(Path("begun"), {"job_toml": "seed = 3\n"}, 1)
    lay_down(parse_job("seed = 3\n", "a test"), Path("begun"), dry_run=False)
    with pytest.raises(UserError, match="no such partition"):
        run(["submit", "a.toml", "--out", "begun"])
    assert (Path("begun") / "submitted.toml").exists()


def test_an_option_of_sbatch_among_those_of_submit(slurm) -> None:
    with pytest.raises(UserError, match=r"--qos is not an option; .*what is for sbatch follows a --"):
        run(["submit", "a.toml", "--qos", "long"])
    assert run(["submit", "a.toml", "--", "--qos", "long", "--reservation=x"]) == 0
    ((arguments, _),) = called(slurm)
    assert arguments[-6:-3] == ["--qos", "long", "--reservation=x"]


def test_what_sbatch_prints_instead_of_a_number(tmp_path) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: Job 5 to start at noon' >&2\n")
    fake.chmod(0o755)
    with pytest.raises(UserError, match="sbatch has submitted nothing: sbatch: Job 5 to start at noon"):
        sbatch([str(fake)])


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
    assert sbatch([str(fake)]) == "1234;alpha"


def test_a_job_of_another_cluster_is_asked_for_there(slurm, monkeypatch, capsys) -> None:
    fake = slurm.parent / "bin/sbatch"
    fake.write_text(fake.read_text().replace("len(file.readlines())", "len(file.readlines()), end=';big\\n'"))
    run(["submit", "a.toml", "--out", "run", "--chain", "2", "--", "--clusters=big"])
    assert "--dependency=afterany:70" in called(slurm)[1][0]
    printed = capsys.readouterr().out
    for line in ("submitted jobs 70 71;", "squeue --clusters=big -j 70,71\n", "scancel --clusters=big 70 71;"):
        assert line in printed
    run(["submit", "a.toml", "--out", "sweep", "--array-seeds", "2", "--", "--clusters=big"])
    asked = []

    def squeue(arguments, **_):
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, "CLUSTER: big\n72 0 RUNNING\n72 1 PENDING\n", "")

    monkeypatch.setattr(sweep.subprocess, "run", squeue)
    assert [swept.state for swept in sweep.read_sweep(slurm / "sweep")] == ["running", "queued"]
    assert asked[0][:2] == ["squeue", "--clusters=big"]
    (slurm / "sweep/logs/72_1.log").touch()
    assert sweep.read_sweep(slurm / "sweep")[1].log == slurm / "sweep/logs/72_1.log"


def test_a_job_that_may_have_been_taken_keeps_its_file(slurm) -> None:
    said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    (slurm.parent / "bin/sbatch").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^sbatch got no answer: .*; `squeue --me` says whether the job waits"):
        run(["submit", "a.toml", "--out", "run"])
    assert load_job(slurm / "run/submitted.toml").seed == 7


def test_a_sweep_whose_logs_were_removed_has_them_again(slurm) -> None:
    run(["submit", "a.toml", "--out", "sweep", "--array-seeds", "2"])
    (slurm / "sweep/logs").rmdir()
    (slurm.parent / "bin/squeue").write_text("#!/bin/sh\n")
    (slurm.parent / "bin/squeue").chmod(0o755)
    run(["submit", "sweep"])
    assert (slurm / "sweep/logs").is_dir()
    assert len(called(slurm)) == 2


@pytest.mark.parametrize("number", ["0", "-3", "two"])
def test_a_sweep_that_is_to_run_none_at_once(slurm, number) -> None:
    with pytest.raises(UserError, match=r"--at-once: is .*; must be a whole number of at least 1"):
        run(["submit", "a.toml", "--array-seeds", "2", "--at-once", number])
    assert not called(slurm)


def test_a_rehearsal_without_slurm_takes_one_line(slurm, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(slurm))
    with pytest.raises(UserError, match="sbatch is not here"):
        run(["submit", "a.toml", "--rehearse", "--out", "rehearsal"])


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
    axes = parse_axes(values, int(words[words.index("--array-seeds") + 1]), 1)
    jobs = combinations(ROOT / words[1], {}, axes)
    monkeypatch.chdir(tmp_path)
    experiment = Path(words[words.index("--out") + 1])
    sweep.lay_out(experiment, jobs)
    for name in jobs:
        (experiment / name).mkdir()
    reported = []
    for report in documented("report"):
        names = {path.name for path in Path().glob(report[1])}
        (game,) = {jobs[name].environment.id for name in names}
        assert names == {name for name, job in jobs.items() if job.environment.id == game}
        reported.append(game)
    assert sorted(reported) == sorted(axes["environment.id"])
    # Where two reports would be one.
    assert len({tuple(report[2:]) for report in documented("report")}) == len(reported)


def test_batch_files_of_a_site_s_own(slurm, monkeypatch) -> None:
    monkeypatch.setenv("GALAMPI_SLURM", "slurm")
    with pytest.raises(
        UserError, match=rf"^GALAMPI_SLURM is {slurm}/slurm; must be a folder of batch files, and holds no"
    ):
        run(["submit", "pong"])
    run(["jobs", "--copy", "."])
    run(["submit", "pong", "--out", "pong"])
    run(["submit", "pong", "--out", "sweep", "--array-seeds", "2"])
    (single, environment), (array, _) = called(slurm)
    assert single[-3:] == [f"{slurm}/{name}" for name in ("slurm/requeue.sbatch", "pong/submitted.toml", "pong")]
    assert f"{slurm}/slurm/sweep.sbatch" in array
    assert environment["GALAMPI_SLURM"] == f"{slurm}/slurm"
    assert load_job("pong/submitted.toml") == load_job(ROOT / "jobs/pong.toml")


def test_a_mistake_in_the_job_shows_before_the_wait(tmp_path) -> None:
    job = tmp_path / "a.toml"
    job.write_text("[learner]\ngamma = 2.0\n")
    with pytest.raises(UserError, match=r"learner\.gamma is 2\.0"):
        run(["submit", str(job), "--dry-run"])


@pytest.mark.parametrize("name", ["submit", "status", "sweep", "jobs", "verify", "mirror"])
def test_login_node_commands_know_neither_torch_nor_mpi(name) -> None:
    code = (
        "import sys; from galampi.cli import run\n"
        f"try: run([{name!r}, '--help'])\nexcept SystemExit: pass\n"
        "import galampi.launch.commands, galampi.launch.here\n"
        "assert not {'torch', 'mpi4py', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_batch_files_are_sound_shell() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is missing")
    files = sorted((ROOT / "slurm").glob("*.sbatch"))
    assert len(files) == 7
    subprocess.run(["shellcheck", *files], check=True)
