"""What a rank tells many others at once, over a network."""

import threading
import time

import pytest
from limits import DEADLOCK_S


@pytest.mark.mpi(ranks=[1], timeout=DEADLOCK_S)
def test_words_to_a_rank_keep_their_order_and_one_that_does_not_answer_holds_up_no_other(comm, monkeypatch) -> None:
    from galampi.gossip import carriers

    written: dict[int, list[int]] = {rank: [] for rank in range(1000)}
    answers = threading.Event()
    failures: list[BaseException] = []
    words = carriers.Words(failures.append)

    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith("galampi-words")]

    def write(rank, number):
        if rank == 5:
            answers.wait()
        written[rank].append(number)

    for number in range(3):
        for rank in written:
            words.give(rank, lambda rank=rank, number=number: write(rank, number))
    while any(len(numbers) < 3 for rank, numbers in written.items() if rank != 5):
        time.sleep(0.01)
    assert not written[5]
    assert len(running()) <= carriers._WORD_THREADS
    answers.set()
    words.finish()
    assert set(map(tuple, written.values())) == {(0, 1, 2)}

    # As many silent ranks as there are threads, as those of a node: more threads come, once all are stuck.
    answers.clear()
    heard = threading.Event()
    monkeypatch.setattr(carriers, "_STUCK_S", 0.2)
    words = carriers.Words(failures.append)
    for rank in range(3 * carriers._WORD_THREADS):
        words.give(rank, answers.wait)
    words.give(10**6, heard.set)
    while not heard.wait(0.05):
        words.look()
    answers.set()
    words.finish()

    def fail():
        raise OSError("no network")

    words = carriers.Words(failures.append)
    words.give(3, fail)
    words.finish()
    assert [str(error) for error in failures] == ["no network"]
