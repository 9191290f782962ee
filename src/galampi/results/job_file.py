"""Write `job.h5`, the file that describes a run; rank 0 does, and any rank that fails."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import h5py

from galampi.errors import ResultsError
from galampi.results.files import partial_name, reading, replacing
from galampi.results.schema import JOB_FILE_NAME, JOB_FORMAT, STATUSES, rank_file_name

Attribute = str | int | float | Sequence[str] | Sequence[int]
"""What the root of a file may be told of its run."""
_FAILED = ".failed-"


class JobFile:
    """`job.h5`, the file that describes a run and links to its rank files.

    It is never kept open: each change writes a new file that takes the old one's place.
    """

    @staticmethod
    def create(out: Path, attributes: Mapping[str, Attribute], num_ranks: int) -> None:
        """Write `job.h5` with status `running`, in place of one that is there.

        Args:
            out: Directory of the run; created if missing.
            attributes: Root attributes (`job_toml`, `argv`, versions, ...).
            num_ranks: Number of rank files to link to; they need not exist yet.
        """
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / JOB_FILE_NAME, JOB_FORMAT) as file:
            file.attrs.update({"status": "running", **attributes, "num_ranks": num_ranks})
            ranks = file.create_group("ranks")
            for rank in range(num_ranks):
                ranks[f"{rank:04d}"] = h5py.ExternalLink(rank_file_name(rank), "/")

    @staticmethod
    def set_status(out: Path, status: str, **attributes: Attribute) -> None:
        """Set the status, and add or replace other attributes.

        Args:
            out: Directory of the run.
            status: `running`, `finished`, `stopped`, `partial` (ended without some ranks) or `failed`.
            attributes: Further root attributes.

        Raises:
            ResultsError: `job.h5` is missing or damaged.
        """
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}; must be one of {', '.join(STATUSES)}")
        path = out / JOB_FILE_NAME
        try:
            with reading(path, JOB_FORMAT) as file:
                old = dict(file.attrs)
        except FileNotFoundError as error:
            raise ResultsError(f"{path}: no such file") from error
        # A rank that was killed while it said that it had failed leaves its folder.
        for left in out.glob(f"{_FAILED}*"):
            _remove_own(left)
        try:
            JobFile.create(out, {**old, **attributes, "status": status}, int(old["num_ranks"]))
        except OSError:
            _set_status_in_place(path, status)

    @staticmethod
    def fail(out: Path, rank: int) -> None:
        """Set the status `failed`; any number of ranks may at once.

        Args:
            out: Directory of the run.
            rank: Number of this rank.

        Raises:
            ResultsError: `job.h5` is damaged.
            OSError: It is missing, or the directory cannot be written.
        """
        with reading(out / JOB_FILE_NAME, JOB_FORMAT) as file:
            old = dict(file.attrs)
        try:
            # In a folder of its own, for two must not write one file; whoever renames last says the same.
            own = Path(tempfile.mkdtemp(prefix=f"{_FAILED}{rank:04d}-", dir=out))
            try:
                JobFile.create(own, {**old, "status": "failed"}, int(old["num_ranks"]))
                (own / JOB_FILE_NAME).rename(out / JOB_FILE_NAME)
            finally:
                _remove_own(own)
        except OSError:
            _set_status_in_place(out / JOB_FILE_NAME, "failed")


def _remove_own(folder: Path) -> None:
    """Remove the folder in which a rank said that it had failed, unless something else lies there."""
    own = {JOB_FILE_NAME, partial_name(Path(JOB_FILE_NAME)).name}
    with suppress(OSError):
        there = list(folder.iterdir())
        if own.issuperset(path.name for path in there):
            for path in there:
                path.unlink()
            folder.rmdir()


def _set_status_in_place(path: Path, status: str) -> None:
    """Set the status where there is no room for a new file: the old value's bytes are written over."""
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs.modify("status", status)
