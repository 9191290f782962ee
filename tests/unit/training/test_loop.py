"""What the loop of a rank keeps of its updates."""

from types import SimpleNamespace

import pytest

from galampi.training.loop import _keeps_step_norm


@pytest.mark.parametrize(
    ("size", "every", "kept"),
    [
        (100_000, 1, [*range(1, 26)]),
        (100_001, 1, [1, 2, 3, 4, 5, 6, 7, 8, 16, 24]),
        # Rows of every second update: the first eight of them, and each eighth.
        (100_001, 2, [*range(1, 17)]),
    ],
)
def test_norms_of_steps_are_kept_at_the_first_updates_of_a_large_network_and_then_now_and_then(
    size, every, kept
) -> None:
    rank = SimpleNamespace(
        learner=SimpleNamespace(parameters=SimpleNamespace(size=size)),
        job=SimpleNamespace(record=SimpleNamespace(every_updates=every)),
    )
    assert [rank.update for rank.update in range(1, 26) if _keeps_step_norm(rank)] == kept
