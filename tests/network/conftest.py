"""Hosts made of network namespaces; skipped where there can be none."""

import pytest

from galampi.bench.hosts import cannot


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long-cut", action="store_true", help="four hosts, links cut for 10 s, Open MPI on Slurm")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cut_s" in metafunc.fixturenames:
        metafunc.parametrize("cut_s", [10 if metafunc.config.getoption("--long-cut") else 4])
    if "num_hosts" in metafunc.fixturenames:
        metafunc.parametrize("num_hosts", [2, 4] if metafunc.config.getoption("--long-cut") else [2])


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long-cut"))


@pytest.fixture(autouse=True, scope="session")
def _hosts_are_possible() -> None:
    if reason := cannot():
        pytest.skip(reason)
