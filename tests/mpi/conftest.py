"""How messages travel in these tests."""

import os

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Over a network put both at once and from a copy that is completed later; the ranks share one machine here, so
    the mailboxes would not choose the latter by themselves under every MPI library."""
    if "stage" in metafunc.fixturenames:
        # The ranks' own pytest gets the environment of the one that starts them, not its options.
        over_network = "MPIR_CVAR_NOLOCAL" in os.environ
        metafunc.parametrize("stage", [False, True] if over_network else [None], ids=lambda stage: f"stage={stage}")
