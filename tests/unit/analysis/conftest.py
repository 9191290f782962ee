"""Fixtures of the tests of analysis."""

import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    """Draw nothing, which takes most of a report's time."""
    from galampi.analysis.figures.drawing import Figure  # needs the extra `report`, as those tests do

    monkeypatch.setattr(Figure, "render", lambda figure: (b"", '<svg viewBox="0 0 1 1"></svg>'))
