"""Who ends a job without some of its ranks, and when."""

import numpy as np

from galampi.gossip import SIGNALLED_PATIENCE_S, Patience, Stage
from galampi.gossip.patience import SAVING_PATIENCE_S, silent_after_s

TRAINING, SAVING, DRAINING, SENT_ALL, SAVED, SAVED_ALONE = Stage


def ends(patience, rank, stages, now_s, signalled_s=None) -> bool:
    return patience.ends_job(rank, np.array(stages), now_s, signalled_s)


def test_the_first_that_has_saved_ends_a_job_and_any_other_after_as_long_again() -> None:
    first, other = Patience(0.0, 60.0), Patience(0.0, 60.0)
    stages = [TRAINING, SAVED_ALONE, SAVED_ALONE]
    assert not ends(first, 1, stages, 60.0)
    assert ends(first, 1, stages, 65.1)
    assert not ends(other, 2, stages, 61.0)
    assert not ends(other, 2, stages, 66.1)
    assert not ends(other, 2, stages, 132.1)
    assert ends(other, 2, stages, 132.3)


def test_who_hears_that_one_has_given_up_is_given_the_time_to_save() -> None:
    first = Patience(0.0, 60.0)
    # It has messages under way to the rank that is lost, so that it is not known to be at its end.
    assert not ends(first, 1, [TRAINING, SAVED_ALONE, TRAINING], 61.0)
    assert not ends(first, 1, [TRAINING, SAVED_ALONE, TRAINING], 61.0 + SIGNALLED_PATIENCE_S)
    assert ends(first, 1, [TRAINING, SAVED_ALONE, TRAINING], 61.1 + SIGNALLED_PATIENCE_S)


def test_a_rank_that_comes_after_all_is_waited_for_anew() -> None:
    other = Patience(0.0, 60.0)
    assert not ends(other, 2, [TRAINING, SAVED, SAVED], 61.0)
    # It has come to its end: twice the time for all, and only then as long again for the first to act.
    assert not ends(other, 2, [SENT_ALL, SAVED, SAVED], 119.0)
    assert not ends(other, 2, [SENT_ALL, SAVED, SAVED], 123.0)
    assert not ends(other, 2, [SENT_ALL, SAVED, SAVED], 240.0)
    assert ends(other, 2, [SENT_ALL, SAVED, SAVED], 247.0)


def test_after_a_signal_nobody_waits_long() -> None:
    patience = Patience(0.0, 60.0)
    stages = [TRAINING, SAVED]
    assert not ends(patience, 1, stages, 10.0 + SIGNALLED_PATIENCE_S, signalled_s=10.0)
    assert ends(patience, 1, stages, 10.1 + 2 * SIGNALLED_PATIENCE_S, signalled_s=10.0)
    # A signal that came before the end counts from the end.
    assert not ends(Patience(20.0, 60.0), 1, stages, 20.0 + SIGNALLED_PATIENCE_S, signalled_s=1.0)


def test_once_one_has_given_up_messages_the_others_do() -> None:
    patience = Patience(0.0, 60.0)
    assert not patience.is_over_for_messages(np.array([TRAINING, SENT_ALL]), 1.0, None)
    assert patience.is_over_for_messages(np.array([TRAINING, SAVED_ALONE]), 1.0, None)


def test_one_that_saves_is_waited_for_as_long_as_its_disk_may_take() -> None:
    patience = Patience(0.0, 60.0)
    stages = np.array([TRAINING, SAVING])
    assert not patience.is_over_for_messages(stages, 10.0 + SAVING_PATIENCE_S, 10.0)
    assert patience.is_over_for_messages(stages, 10.1 + SAVING_PATIENCE_S, 10.0)
    assert patience.is_over_for_messages(np.array([TRAINING, SENT_ALL]), 10.1 + SIGNALLED_PATIENCE_S, 10.0)
    assert not patience.is_over_for_messages(stages, 120.0, None)
    assert patience.is_over_for_messages(stages, 120.1, None)
    # Nor is the job ended without it, until then.
    patience = Patience(0.0, 60.0)
    assert not ends(patience, 0, [SAVED, SAVING], 1.0 + SAVING_PATIENCE_S, signalled_s=1.0)
    assert ends(patience, 0, [SAVED, SAVING], 1.1 + SAVING_PATIENCE_S + SIGNALLED_PATIENCE_S, signalled_s=1.0)
    # One whose messages do not get through has saved.
    patience = Patience(0.0, 60.0)
    assert patience.is_over_for_messages(np.array([DRAINING, TRAINING]), 10.1 + SIGNALLED_PATIENCE_S, 10.0)


def test_a_rank_that_is_as_slow_is_given_two_updates() -> None:
    assert silent_after_s(60.0, []) == 60
    assert silent_after_s(60.0, [25.0] * 9) == 60
    # A single stall says nothing.
    assert silent_after_s(60.0, [25.0] * 8 + [3600.0]) == 60
    assert silent_after_s(60.0, [50.0] * 9) == 100
