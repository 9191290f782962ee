"""Options of the whole test suite, and where its programs keep their files."""

import os
import tempfile
from pathlib import Path

import pytest
from recording import Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests marked `slow`")
    parser.addoption("--network", action="store_true", help="keep MPI off shared memory, as between nodes")
    parser.addoption("--record", type=Path, metavar="FILE", help="keep what came of the tests marked `library`")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_ISOLATE_MPI_IS_FORKED" in os.environ:
        return  # A rank of a test; what follows was done by the process that launched it.
    folder = tempfile.TemporaryDirectory(prefix="galampi-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    # Open MPI names a launch's files by its process id, and refuses to start beside files of one that was killed.
    os.environ["TMPDIR"] = folder.name
    # Tests of GPUs ask for them; to all others a machine has none.
    if not any("gpu" in str(argument) for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Here, for ranks of tests do without, and its import takes as long as all else of theirs.
    from hypothesis import settings

    settings.register_profile("galampi", deadline=None)  # A machine may stall.
    settings.load_profile("galampi")
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(config.getoption("--record")))
    if config.getoption("--network"):
        from galampi.bench.contestants import off_shared_memory

        os.environ.update(off_shared_memory(Path(folder.name)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as this process may use cores, and no more than pays: each imports torch."""
    if asked := os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return int(asked)
    from galampi.ranks.launched import num_cores

    return min(8, num_cores())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        slow = [item for item in items if _is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def _is_slow(item: pytest.Item) -> bool:
    """Whether a test is marked `slow`, for its number of ranks if the mark names some."""
    mark = item.get_closest_marker("slow")
    return mark is not None and (
        "ranks" not in mark.kwargs or item.callspec.params["mpi_ranks"] in mark.kwargs["ranks"]
    )
