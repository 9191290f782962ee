"""What must hold of any job holds of some dozen, and would be missed if a rule were broken."""

import re
from dataclasses import replace

import pytest

from galampi.cli import run
from galampi.errors import LostRankError
from galampi.gossip import MailboxRules, Patience, PushSum, Stage
from galampi.simulation import command
from galampi.simulation.invariants import BrokenInvariantError, Scenario, check, draw

NUM_SEEDS = 50


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, 10))
def test_jobs_drawn_at_random_are_as_they_must_be(first) -> None:
    assert [seed for seed in range(first, first + 10) if command.failure_of(seed)] == []


def test_a_seed_always_draws_the_same_job() -> None:
    first, again = (check(draw(8)) for _ in range(2))
    assert str(draw(8)) == str(draw(8)) != str(draw(9))
    assert [rank.left_s for rank in first.ranks] == [rank.left_s for rank in again.ranks]
    assert (first.z == again.z).all()


def slow_without_exchange() -> Scenario:
    """A job of ranks that exchange nothing, one of which is slower: it is at it for long after the other."""
    alone = next(scenario for scenario in map(draw, range(100)) if scenario.exchange.method == "none")
    return replace(
        alone,
        exchange=replace(alone.exchange, num_ranks=2),
        ending=replace(alone.ending, budget=4000, silent_after_s=60.0),
        update_s=(0.50, 0.55),
        starts_s=(0.0, 0.0),
        **{name: () for name in ("pauses", "deaths", "signals")},
    )


def test_ranks_that_exchange_nothing_are_left_in_peace() -> None:
    ranks = check(slow_without_exchange()).ranks
    assert [rank.num_updates for rank in ranks] == [2000, 2000]
    assert ranks[1].left_s - ranks[0].left_s > 70


def test_what_comes_to_a_rank_that_has_done_its_part_is_for_all() -> None:
    done_s = check(slow_without_exchange()).ranks[0].left_s
    ranks = check(replace(slow_without_exchange(), signals=((done_s + 5, 0),))).ranks
    assert {rank.outcome for rank in ranks} == {"whole"}
    assert ranks[0].num_updates == 2000
    assert ranks[1].left_s - done_s < 10


def test_a_slow_rank_that_is_not_left_in_peace_is_found(monkeypatch) -> None:
    monkeypatch.setattr("galampi.simulation.ranks.is_heard_of", lambda method: True)
    with pytest.raises(BrokenInvariantError, match=r"ranks that exchange nothing have ended {'partial'}"):
        check(slow_without_exchange())


def push_whatever_is_unread(monkeypatch) -> None:
    push = MailboxRules.push

    def broken(self, edge, *message):
        self._acks[edge] = self._num_sent[edge]
        return push(self, edge, *message)

    monkeypatch.setattr(MailboxRules, "push", broken)


def raise_the_flag_at_once(monkeypatch) -> None:
    push = MailboxRules.push

    def broken(self, edge, *message):
        sent = push(self, edge, *message)
        if edge in self._under_way:
            self._raise_flag(edge, int(self._num_sent[edge]))
        return sent

    monkeypatch.setattr(MailboxRules, "push", broken)


def keep_what_is_given(monkeypatch) -> None:
    monkeypatch.setattr(PushSum, "give", lambda self, share, z, read: None)


def forget_what_a_message_leaves_out(monkeypatch) -> None:
    give = PushSum.give
    monkeypatch.setattr(PushSum, "give", lambda self, share, z, read: give(self, share, z, z))


def weigh_wrongly(monkeypatch) -> None:
    receive = PushSum.receive

    def broken(self, z, waiting, round_edges):
        before = z.copy()
        used = receive(self, z, waiting, round_edges)
        z += 0.01 * (before - z)
        return used

    monkeypatch.setattr(PushSum, "receive", broken)


def drop_what_is_left(monkeypatch) -> None:
    monkeypatch.setattr(PushSum, "settle", lambda self, z, waiting: None)


def wait_for_a_full_mailbox(monkeypatch) -> None:
    push = MailboxRules.push

    def broken(self, *message):
        while (read := push(self, *message)) is None:
            pass
        return read

    monkeypatch.setattr(MailboxRules, "push", broken)


def keep_a_stop_to_oneself(monkeypatch) -> None:
    def broken(self):
        self._sync()
        return bool(self._stop[0])

    monkeypatch.setattr(MailboxRules, "stop_announced", property(broken))


def wait_for_ever_at_the_end(monkeypatch) -> None:
    monkeypatch.setattr(Patience, "is_over", lambda self, now_s, signalled_s: False)
    monkeypatch.setattr(Patience, "ends_job", lambda self, rank, stages, now_s, signalled_s: False)


def say_it_too_early(monkeypatch) -> None:
    def broken(self):
        if self.stages[self._rank] < Stage.SENT_ALL:
            self.announce(Stage.SENT_ALL)
        return bool((self.stages >= Stage.SENT_ALL).all())

    monkeypatch.setattr(MailboxRules, "finish", broken)


@pytest.mark.parametrize(
    ("break_a_rule", "found"),
    [
        (push_whatever_is_unread, "is torn"),
        (raise_the_flag_at_once, "is torn|empty mailbox"),
        (keep_what_is_given, "weights sum to"),
        (forget_what_a_message_leaves_out, "the mass is"),
        (weigh_wrongly, "the mass is"),
        (drop_what_is_left, "weights sum to"),
        (wait_for_a_full_mailbox, "waits: it looks on and on"),
        (keep_a_stop_to_oneself, "ranks have left .* apart|have not ended"),
        pytest.param(wait_for_ever_at_the_end, "have not ended", marks=pytest.mark.slow),
        (say_it_too_early, "in flight after a whole end"),
    ],
)
def test_a_broken_rule_is_found(monkeypatch, break_a_rule, found) -> None:
    break_a_rule(monkeypatch)
    for seed in range(2 * NUM_SEEDS):
        try:
            check(draw(seed))
        except BrokenInvariantError as error:
            if re.search(found, str(error)):
                return
    raise AssertionError("no job has shown it")


def test_a_failing_seed_is_told_with_what_plays_it_again(monkeypatch, capsys) -> None:
    def torn(scenario) -> None:
        if scenario.seed in (3, 5):
            raise BrokenInvariantError("at 1 s:\n it is torn") from LostRankError()

    monkeypatch.setattr(command, "check", torn)
    lines = list(command.check_seeds(0, 8, num_processes=1))
    assert lines == [
        f"seed {seed}: at 1 s: it is torn; again by: python -m galampi simulate --replay {seed}" for seed in (3, 5)
    ]
    assert run(["simulate", "--replay", "5"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("seed 5: ") and told.endswith("at 1 s: it is torn\n")
    assert run(["simulate", "--replay", "4"]) == 0
