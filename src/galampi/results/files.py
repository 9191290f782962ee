"""Open and replace files so that no crash leaves half of one.

Knows h5py and the file system, not what the files hold beyond the two root attributes every HDF5 file has:
`format` and `schema_version`.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from galampi.errors import ResultsError, UnreadableError, UserError
from galampi.results.schema import SCHEMA_VERSION

LIBVER = ("v110", "v110")
"""The oldest file format that allows reading while writing; HDF5 1.10 (2016) and newer read it."""


_BLOCK_BYTES = 1 << 20


def partial_name(path: Path) -> Path:
    """Name under which a file is made before it takes the place of `path`."""
    return path.with_name(path.name + ".part")


def create(path: Path, file_format: str) -> h5py.File:
    """Create an HDF5 file that says what it is, over whatever lies at `path`."""
    # Every file has one writer and appears by rename, so locks guard nothing; some cluster file systems
    # refuse them.
    file = h5py.File(path, "w", libver=LIBVER, locking=False)
    file.attrs["format"] = file_format
    file.attrs["schema_version"] = SCHEMA_VERSION
    return file


def is_still_at(path: Path, place: os.stat_result) -> bool:
    """Whether what lies at a path is what was found there, or opened: it may have been renamed, removed or replaced."""
    try:
        return os.path.samestat(path.stat(), place)
    except FileNotFoundError:
        return False


def require_room(path: Path, size_bytes: int) -> None:
    """See that a file of some size can be written at `path`, where it leaves one without contents.

    HDF5 ends the process if the disk is full before a new file was written once.

    Raises:
        OSError: It cannot.
    """
    try:
        with path.open("wb") as file:
            try:
                for start in range(0, size_bytes, _BLOCK_BYTES):
                    file.write(bytes(min(_BLOCK_BYTES, size_bytes - start)))
                file.flush()
            finally:
                file.truncate(0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def move_into_place(path: Path, previous: Path | None = None) -> None:
    """Rename the finished `partial_name(path)` to `path`, and make the rename survive a power cut.

    What was at `path` is kept at `previous`, if that is given. There is always a file at `path`, but for a moment on
    file systems without hard links between folders.
    """
    if previous is not None and path.exists():
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(path)
        except OSError:
            path.replace(previous)
    partial_name(path).rename(path)
    _sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what h5py meets while it writes as the system's own error, with the name of the file.

    Raises:
        OSError: The disk is full or broken; h5py says it as a RuntimeError of several lines, or without a name.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        told = re.search(r"errno = (\d+)", str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        if not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def replacing(path: Path, file_format: str, previous: Path | None = None) -> Iterator[h5py.File]:
    """Write a new file that takes the place of `path` in one step once it is complete and on the disk.

    Whenever the process is killed, `path` is the old file or the new one, never a mixture. If the body
    raises, or the disk is full, the old file stays. With `previous` the old file is kept there once the new one takes
    its place.

    Raises:
        OSError: The file cannot be written.
    """
    with writing(path), _made_beside(path, previous) as partial, create(partial, file_format) as file:
        yield file


def refuse_other_kind(path: Path, suffix: str) -> None:
    """See that no file which its name says is of another kind would give way to one that ends in `suffix`.

    Raises:
        UserError: Such a file lies at `path`.
    """
    if path.is_file() and path.suffix.lower() != suffix:
        raise UserError(f"{path}: is there already, and no {suffix}; choose another name")


def replace_text(path: Path, text: str) -> None:
    """Write a text file that takes the place of `path` in one step, as `replacing` does.

    Raises:
        OSError: The file cannot be written.
    """
    with _made_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _made_beside(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Give the name of a file that, once it is complete and on the disk, takes the place of `path`."""
    partial = partial_name(path)
    try:
        yield partial
        _sync(partial)
    except BaseException:
        # What there is of it takes room from those that write next.
        partial.unlink(missing_ok=True)
        raise
    move_into_place(path, previous)


def open_for_reading(path: Path, file_format: str) -> h5py.File:
    """Open a file of a run, also while it is written and after its writer was killed.

    Args:
        path: The file.
        file_format: The `format` it must say it has.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: It may not be read.
        ResultsError: The file is truncated, foreign, or of a newer schema.
    """
    try:
        # By the system, not by HDF5, whose errors tell a lack of permission and a damage alike.
        os.close(os.open(path, os.O_RDONLY))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        file = _open(path)
    except OSError:
        # Between look and open the writer may have closed the file, or a resume replaced it: look again.
        try:
            file = _open(path)
        except OSError as error:
            raise ResultsError(f"{path}: no HDF5 file, or a truncated one: {_one_line(error)}") from error
    try:
        _check(file, path, file_format)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def reading(path: Path, file_format: str) -> Iterator[h5py.File]:
    """Open a file of a run for the reads in the body, and say in one line if it is damaged.

    Raises:
        FileNotFoundError: There is no such file.
        ResultsError: As `open_for_reading`, or what the body reads is missing or damaged.
    """
    with open_for_reading(path, file_format) as file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ResultsError(f"{path}: damaged: {_one_line(error)}") from error


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync what is no ordinary file, and say so by EINVAL.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _check(file: h5py.File, path: Path, file_format: str) -> None:
    """Raise ResultsError unless a file says it has the format and a version that can be read."""
    try:
        found = file.attrs.get("format")
        version = file.attrs.get("schema_version")
    except (OSError, RuntimeError, KeyError) as error:
        raise ResultsError(f"{path}: damaged: {_one_line(error)}") from error
    if found != file_format or version is None:
        raise ResultsError(f"{path}: format is {found!r}; must be {file_format!r}")
    if not isinstance(version, int | np.integer):
        raise ResultsError(f"{path}: damaged: schema_version is {version!r}; must be a number")
    if version > SCHEMA_VERSION:
        raise ResultsError(
            f"{path}: schema_version is {version}, of a newer galampi; this one reads up to {SCHEMA_VERSION}"
        )


def _open(path: Path) -> h5py.File:
    with path.open("rb") as stream:
        superblock = stream.read(48)
        size_bytes = stream.seek(0, os.SEEK_END)
    # HDF5 File Format Specification, superblock version 3: byte 11 holds the file consistency flags, which are
    # set while a writer has the file open and stay set if it is killed; bytes 28 to 35 hold the end of the file.
    if len(superblock) < 48 or superblock[8] != 3 or not superblock[11]:
        return _opened(path, swmr=False)
    # Such a file opens with swmr=True only. In that mode HDF5 takes a truncated file for one that is about to
    # grow: it reads zeros, or tries again for ever.
    end = int.from_bytes(superblock[28:36], "little")
    if size_bytes < end:
        raise OSError(f"it has {size_bytes} of {end} bytes")
    return _opened(path, swmr=True)


def _opened(path: Path, *, swmr: bool) -> h5py.File:
    try:
        return h5py.File(path, "r", swmr=swmr, locking=False)
    except OSError as error:
        # What this process has open already, as a notebook may through xarray, HDF5 opens again in the same way alone.
        if "locking flag values" not in str(error):
            raise
        return h5py.File(path, "r", swmr=swmr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
