"""The documentation tells what was found out about each MPI library, and nothing else."""

import json

from recording import BEGIN, END, LIBRARIES, PAGE, RECORDS, TRIED, table


def test_the_table_is_that_of_the_records() -> None:
    between = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert between == table()


def test_no_record_is_left_out() -> None:
    paths = sorted(RECORDS.iterdir())
    assert {path.stem for path in paths} <= LIBRARIES.keys()
    for path in paths:
        for results in json.loads(path.read_text())["launchers"].values():
            assert results.pop("date")
            assert results.keys() <= set(TRIED)
            assert set(results.values()) <= {"passed", "failed"}
