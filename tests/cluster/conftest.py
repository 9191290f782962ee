"""A Slurm cluster of virtual nodes for the tests of this folder, and what to ask of it."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from interruptions import EVENTS, LIKELY, QUICK, interrupt
from libraries import library_launchers, srun_type, windows_between_nodes
from limits import DEADLOCK_S

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-event", action="store_true", help="interrupt jobs in every way there is")


def free_ports(number: int) -> int:
    """Return the first of some consecutive ports that nobody listens at, below those that connections use."""
    for first in random.sample(range(20_000, 32_000, number), 100):
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


class Cluster:
    """A running local Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "LOCAL_SLURM_DIR": str(folder),
            "LOCAL_SLURM_PORT": str(free_ports(10)),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": f"{HERE}:{HERE.parent / 'jobs'}:{os.environ.get('PYTHONPATH', '')}",
            "GALAMPI_MPI": srun_type(),
            **windows_between_nodes(),
        }

    def call(self, *arguments: object, code: int | None = 0) -> str:
        """Run a command; return what it prints."""
        done = subprocess.run(
            [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=DEADLOCK_S,
            check=False,
        )
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def control(self, *arguments: str) -> None:
        """Change the cluster itself."""
        self.call(HERE / "local-slurm.sh", *arguments)

    def galampi(self, *arguments: object, code: int | None = 0) -> str:
        return self.call(sys.executable, "-m", "galampi", *arguments, code=code)

    def submit(self, *arguments: object) -> str:
        """Submit with the command; return the job's number."""
        printed = self.galampi("submit", *arguments)
        return re.search(r"^submitted job (\d+);", printed, re.MULTILINE)[1]

    def job(self, job_id: str) -> dict[str, str]:
        """Return what Slurm says of a job."""
        text = ""

        def is_answered() -> bool:
            nonlocal text
            text = self.call("scontrol", "--oneliner", "show", "job", job_id, code=None)
            # So it is while the controller reads its settings again (`notice`).
            return "Zero Bytes were transmitted or received" not in text

        self.wait_for(is_answered)
        assert "JobState=" in text, text
        return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)

    def processes(self, job_id: str) -> list[psutil.Process]:
        """Return what runs here for a job, or what is left of it."""
        marks = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_JOB_ID": job_id}
        return [process for process in psutil.process_iter() if marks.items() <= _environment_of(process).items()]

    def ranks(self, out: Path) -> list[psutil.Process]:
        """Return the ranks that srun has started for a run, on all nodes."""
        found = []
        for process in psutil.process_iter():
            environment = _environment_of(process)
            if environment.get("SLURM_CONF") == self.environment["SLURM_CONF"] and "SLURM_PROCID" in environment:
                with suppress(psutil.Error):
                    found += [process] * (str(out) in process.cmdline() and process.name().startswith("python"))
        return found

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; ask seldom, for every question to Slurm is a process."""
        deadline = time.monotonic() + DEADLOCK_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {DEADLOCK_S} s\n{self.call('squeue')}"
            time.sleep(0.5)

    def wait_for_end(self, job_id: str) -> str:
        """Wait until a job has left the queue for good; return its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait_for(lambda: self.job(job_id)["JobState"] in ended)
        return self.job(job_id)["JobState"]


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"{missing[0]} is missing: `tests/cluster/local-slurm.sh install` installs Slurm")
    if os.getuid() != 0:
        pytest.skip("the local Slurm needs root")
    # munged refuses folders that others may enter; pytest's own lie below such a one.
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.control("start")
        yield cluster
    finally:
        cluster.control("stop")


@pytest.fixture(scope="session")
def launchers() -> list[str]:
    """What starts ranks of the MPI library whose mpirun lies beside this python."""
    return library_launchers()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of interruptions: the likely ones, and all of them with --every-event."""
    if "case" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--every-event", default=False)
    # That srun starts ranks by pmix changes little of what comes of an event: two will do.
    likely = {case for case in LIKELY if case[2] == "mpirun" or srun_type() == "pmi2" or case[0] in ("cancel", "limit")}
    cases = [
        (event, num_nodes, launcher)
        for launcher in library_launchers()
        for num_nodes in (1, 2)
        for event in EVENTS
        if every or (event, num_nodes, launcher) in likely
    ]
    marks = {case: [] if case in QUICK else [pytest.mark.slow] for case in cases}
    parameters = [pytest.param(case, id="-".join(map(str, case)), marks=marks[case]) for case in cases]
    metafunc.parametrize("case", parameters)


@pytest.fixture(scope="session", autouse=True)
def begun(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple, tuple[Path, Future]]]:
    """Begin the interruption of every selected test before the first: they mostly wait, while other tests run."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    cases = [call.params["case"] for call in calls if call is not None and "case" in call.params]
    folder = tmp_path_factory.mktemp("interruptions")
    pool = ThreadPoolExecutor(8)
    places = {case: folder / "-".join(map(str, case)) for case in cases}
    yield {case: (place, pool.submit(interrupt, cluster, *case, place)) for case, place in places.items()}
    pool.shutdown(cancel_futures=True)
