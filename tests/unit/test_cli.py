"""What all commands do with their words before they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from galampi import cli
from galampi.cli import run
from galampi.errors import UserError
from galampi.results import JobFile


@pytest.fixture
def ran(monkeypatch):
    """Note the arguments with which a command is run, instead of running it."""
    noted = []

    def add(name, add_arguments, summary, example):
        def adding(parser):
            add_arguments(parser)
            parser.set_defaults(run=lambda arguments: noted.append(arguments) or 0)

        return adding, summary, example

    commands = {name: add(name, *command) for name, command in cli._COMMANDS.items()}
    monkeypatch.setattr(cli, "_COMMANDS", commands)
    return noted


def test_dashes_in_the_name_of_an_option_count_as_underscores(ran) -> None:
    run(["train", "my-job_1.toml", "--total-env-steps", "7", "--gossip.weight-floor=0.25", "--resume=auto"])
    run(["--environment.num-envs", "3", "--name=a-b_c"])
    run(["evaluate", "my_run-2", "--stuck_after", "5"])
    trained, bare, evaluated = map(vars, ran)
    assert (trained["total_env_steps"], trained["gossip.weight_floor"], trained["resume"]) == ("7", "0.25", "auto")
    assert trained["job"].name == "my-job_1.toml"
    assert (bare["environment.num_envs"], bare["name"]) == ("3", "a-b_c")
    assert (evaluated["run_path"].name, evaluated["stuck_after"]) == ("my_run-2", 5)
    with pytest.raises(
        UserError, match=r"^--gossip.wait-floor is not an option; did you mean --gossip.weight_floor\?$"
    ):
        run(["train", "--gossip.wait-floor", "0.25"])


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["train", "job.toml", "--out", "runs/a"], {"job": "job.toml", "out": "runs/a"}),
        (["evaluate", "a", "--video", "a.mp4", "--out", "a.h5"], {"run_path": "a", "video": "a.mp4", "out": "a.h5"}),
        (["export", "a", "b", "--onnx", "a.onnx"], {"folders": ["a", "b"], "onnx": "a.onnx"}),
        (["report", "a", "b", "--out", "."], {"folders": ["a", "b"], "out": "."}),
        (["submit", "job.toml", "--script", "s"], {"job": "job.toml", "script": "s"}),
        (["watch", "../a", "b"], {"folders": ["../a", "b"]}),
        (["status", "a", "b"], {"folder": ["a", "b"]}),
        (["doctor"], {"out": "runs"}),
    ],
)
def test_paths_are_absolute_before_a_command_begins(ran, words, paths) -> None:
    """What a command runs may change the folder, as an environment does that calls os.chdir."""
    run(words)
    here = Path.cwd()
    for name, given in paths.items():
        expected = [here / each for each in given] if isinstance(given, list) else here / given
        assert getattr(ran[0], name) == expected


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize(
    "words", [["evaluate", "a"], ["report", "a"], ["export", "a"], ["submit", "a.toml"], ["sweep", "a"]]
)
def test_what_is_done_once_is_refused_to_several_processes(ran, monkeypatch, words, variable) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(
        UserError, match=rf"^{words[0]} takes one process, and {variable} is 2: start it without mpirun"
    ):
        run(words)
    monkeypatch.setenv(variable, "1")
    assert run(words) == 0
    # The size of an allocation is not that of a launch.
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert run(words) == 0


@pytest.mark.parametrize(
    "words", [["train", "--out", ""], ["status", ""], ["evaluate", "run", "--out="], ["report", ""]]
)
def test_a_variable_that_is_not_set_is_no_path(words) -> None:
    with pytest.raises(UserError, match="is empty; must be a path"):
        run(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "x", "--rliable", "s.json", "--rank", "1"], "--rank is of --policy and --onnx; neither is given"),
        (["export", "x", "--tensorboard", "tb", "--checkpoint", "5"], "--checkpoint is of --policy and --onnx"),
        (["export", "x", "--tensorboard", "tb", "--modules-folder", "."], "--modules-folder is of --policy and"),
        (["export", "x", "--policy", "p.safetensors", "--score", "training"], "--score is of --rliable, which is not"),
        (["simulate", "--like", "x", "--out", "f.json"], "--out does nothing beside --like"),
        (["simulate", "--like", "x", "--weight-floor", "0.2"], "--weight-floor does nothing beside --like"),
        (["simulate", "--check", "5", "--seed", "3"], "--seed does nothing beside --check"),
        (["simulate", "--replay", "5", "--check", "100"], "--check does nothing beside --replay"),
    ],
)
def test_an_option_that_does_nothing_is_refused(words, told) -> None:
    with pytest.raises(UserError, match=f"^{told}"):
        run(words)


def test_what_the_terminal_cannot_show_is_no_failure(tmp_path) -> None:
    run_path = tmp_path / "\u03c0"
    done = galampi("status", str(run_path), env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.decode() == f"{tmp_path}/\\u03c0: missing: no job.h5 there\n"
    assert (done.returncode, done.stderr) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_below_what_is_printed() -> None:
    with Path("/dev/full").open("w") as full:
        done = galampi("jobs", stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        b"galampi: what it prints cannot be written: No space left on device\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_code_of_status_is_that_of_the_run_whatever_becomes_of_its_text(tmp_path) -> None:
    JobFile.create(tmp_path, {}, 1)
    JobFile.set_status(tmp_path, "finished")
    with Path("/dev/full").open("w") as full:
        done = galampi("status", str(tmp_path), stdout=full)
    assert (done.returncode, done.stderr) == (
        0,
        b"galampi: what it prints cannot be written: No space left on device\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = galampi("status", str(tmp_path), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(tmp_path, closed) -> None:
    JobFile.create(tmp_path, {}, 1)
    JobFile.set_status(tmp_path, "stopped")
    command = f"'{sys.executable}' -m galampi status '{tmp_path}' {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


def galampi(*words, env=None, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "galampi", *words]
    return subprocess.run(
        command, env={**os.environ, **(env or {})}, stdout=stdout, stderr=subprocess.PIPE, check=False
    )
