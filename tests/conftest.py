"""Options of the whole test suite."""

import os

import pytest

# What keeps each MPI library off shared memory, so that one machine shows what a network does.
_NETWORK_PATH = {
    "MPIR_CVAR_NOLOCAL": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,tcp",
    "OMPI_MCA_osc": "^sm,ucx",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="keep MPI off shared memory, as between nodes")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--network"):
        os.environ.update(_NETWORK_PATH)
