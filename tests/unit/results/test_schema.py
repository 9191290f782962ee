"""The layout of the files, frozen: users' notebooks rest on it."""

import inspect
import os
from pathlib import Path

import h5py
from rank_rows import SKETCH

from galampi.results import JobFile, RankWriter, Restart, save_checkpoint
from galampi.results.schema import EPISODES, FAILURES, RESTARTS, TABLES

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "schema.txt"
HOW_TO_ACCEPT = """
The layout of the results files has changed. Notebooks of users rest on it. If the change is meant:
1. if something was taken away, renamed or redefined, add 1 to SCHEMA_VERSION in results/schema.py;
2. say it in docs/format.md and in CHANGELOG.md;
3. write the new tests/golden/schema.txt:
   GALAMPI_ACCEPT_GOLDEN=1 python -m pytest tests/unit/results/test_schema.py
"""


def describe(path: Path) -> list[str]:
    """List every group, dataset and root attribute of a file, one a line."""
    lines = [path.name]
    with h5py.File(path) as file:
        lines += [f"  attribute {name}" for name in sorted(file.attrs)]

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                lines.append(f"  /{name}")
                return
            string = h5py.check_string_dtype(item.dtype)
            dtype = "string" if string else item.dtype.name
            shape = ", ".join("rows" if each is None else str(each) for each in item.maxshape)
            scales = ", ".join(dim[0].name.rsplit("/", 1)[1] for dim in item.dims if len(dim))
            role = "is a scale" if item.is_scale else f"scales [{scales}]"
            lines.append(f"  /{name}  {dtype}  [{shape}]  {role}  units {item.attrs['units']!r}")
            assert item.attrs["description"]

        file.visititems(visit)
    return lines


def test_layout_is_the_golden_one(tmp_path):
    JobFile.create(tmp_path, {}, num_ranks=1)
    RankWriter(tmp_path / "rank-0000.h5", rank=0, sketch=SKETCH).close()
    save_checkpoint(tmp_path / "checkpoint" / "rank-0000.h5", {})
    with h5py.File(tmp_path / "job.h5") as file:
        link = file["ranks"].get("0000", getlink=True)
        links = f"  /ranks/0000 -> {link.filename} {link.path}"
    lines = [*describe(tmp_path / "job.h5"), links, "", *describe(tmp_path / "rank-0000.h5")]
    with h5py.File(tmp_path / "checkpoint" / "rank-0000.h5") as file:
        lines += [
            "",
            "checkpoint/rank-0000.h5",
            *(f"  attribute {name}" for name in sorted(file.attrs)),
            "  /state",
        ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("GALAMPI_ACCEPT_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), HOW_TO_ACCEPT


def test_writer_takes_the_columns_of_the_schema():
    parameters = list(inspect.signature(RankWriter.write_episode).parameters)[1:]
    columns = [column.name for column in EPISODES]
    assert parameters.pop() == "numbers"
    assert parameters == ["episodic_return" if name == "return" else name for name in columns if name != "episode"]
    parameters = list(inspect.signature(RankWriter.write_failure).parameters)[1:]
    assert parameters == [column.name for column in FAILURES if column.name != "failure"]
    # The writer adds the number and the time of day.
    columns = [column.name for column in RESTARTS if column.name not in ("restart", "wall_clock")]
    assert [*inspect.signature(Restart).parameters] == columns


def test_the_format_is_documented():
    text = (ROOT / "docs" / "format.md").read_text()
    for table in TABLES.values():
        section = text.split(f"### `/{table.name}`")[1].split("\n#")[0]
        for column in table:
            row = f"| `{column.name}` | {column.dtype} | {column.units} | {column.description} |"
            assert row in section, f"docs/format.md: /{table.name} lacks the row {row}"
