"""Options of the whole test suite."""

import os

import pytest

from galampi.bench.contestants import OFF_SHARED_MEMORY


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="keep MPI off shared memory, as between nodes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--network"):
        os.environ.update(OFF_SHARED_MEMORY)
