"""Options of the whole test suite."""

import os
import tempfile
from pathlib import Path

import pytest

from galampi.bench.contestants import off_shared_memory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="keep MPI off shared memory, as between nodes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--network"):
        folder = tempfile.TemporaryDirectory(prefix="galampi-nodes-")
        config.add_cleanup(folder.cleanup)
        os.environ.update(off_shared_memory(Path(folder.name)))
