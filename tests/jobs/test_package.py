"""The package as others get it: built, installed where nothing of this checkout is, and used from another folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from launching import assert_sound
from limits import DEADLOCK_S

pytestmark = pytest.mark.one_mpi
ROOT = Path(__file__).parents[2]
# What others' checkouts do not hold.
_IGNORED = shutil.ignore_patterns(".git", ".*_cache", ".venv*", "*.egg-info", "build", "dist", "runs", "__pycache__")


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a distribution as pip would, and return it."""
    code = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (built,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from nothing but the source distribution."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=_IGNORED)
    with tarfile.open(build("sdist", folder / "checkout", folder)) as sdist:
        sdist.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return build("wheel", source, folder)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Where the programs of an environment with the wheel lie; what it depends on comes from that of this test."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # Links in that folder to checkouts are not followed from here.
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def call(installed, tmp_path):
    """Call a program from a folder of its own, and return what it has printed."""

    def call(*words: object, code: int = 0) -> str:
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        # mpi4py looks for the MPI library of a wheel in the environment that it runs in.
        environment["LD_LIBRARY_PATH"] = f"{sys.prefix}/lib"
        done = subprocess.run(
            [str(word) for word in words],
            cwd=tmp_path,
            env={**environment, "PATH": f"{installed}:{Path(sys.executable).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=DEADLOCK_S,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    return call


def test_the_wheel_holds_the_package_and_no_more(wheel) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if not re.match(r"galampi-[^/]*\.dist-info/", name)}
    expected = {f"galampi/{path.relative_to(ROOT / 'src/galampi')}" for path in (ROOT / "src/galampi").rglob("*.py")}
    expected |= {f"galampi/jobs/{path.name}" for path in (ROOT / "jobs").iterdir() if path.is_file()}
    expected |= {f"galampi/slurm/{path.name}" for path in (ROOT / "slurm").iterdir()}
    assert package == expected | {"galampi/py.typed"}


def test_everything_runs_outside_a_checkout(call, installed, tmp_path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert call("galampi", "--version").split() == ["galampi", version]
    assert str(installed.parent) in call("python", "-c", "import galampi; print(galampi.__file__)")
    assert "exit codes" in call("galampi", "--help")
    listed = call("galampi", "jobs").splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in (ROOT / "jobs").glob("*.toml"))
    call("mpirun", "-n", 2, "galampi", "train", "cartpole", "--total_env_steps", 20_000, "--out", "run")
    assert_sound(tmp_path / "run", num_ranks=2, status="finished")
    assert "finished" in call("galampi", "status", "run")
    call("galampi", "report", "run")
    assert (tmp_path / "run/report/index.html").is_file()
    words = call("galampi", "submit", "pong", "--dry-run", "--out", "pong").split()
    assert Path(words[-3]).is_relative_to(installed.parent)
    assert Path(words[-3]).read_text() == (ROOT / "slurm/requeue.sbatch").read_text()
