"""Entry: run the command, and end the whole job when one rank fails."""

from __future__ import annotations

import errno
import io
import os
import sys
from types import TracebackType

from galampi.errors import UserError
from galampi.ranks.launched import launched_rank, prepare_libraries
from galampi.ranks.starting import end_failed, end_ranks, let_rank_0_speak

_STDERR = 2
_INTERRUPTED = 130
"""Exit code of what SIGINT has ended, as shells have it."""


def main() -> int:
    """Run the command of this process and return its exit code."""
    _open_closed_streams()
    # Help and mistakes are printed once and not once for each rank.
    rank = launched_rank()
    prepare_libraries()
    _ignore_released_files()
    if rank > 0 and not {"-h", "--help", "--version"}.isdisjoint(sys.argv[1:]):
        return 0
    # A name that the terminal's encoding lacks is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Within, for it takes a moment in which a user may think better of it.
        from galampi.cli import run

        code = run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except UserError as error:
        if rank == 0:
            print(f"galampi: {error}", file=sys.stderr, flush=True)
        # Open MPI's launcher kills all at the first non-zero exit.
        let_rank_0_speak()
        return 2
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            end_failed(error)
            return 1
        from galampi.cli.settings import mute_output

        mute_output(error)
        return 1
    except SystemExit:
        raise
    except KeyboardInterrupt:
        if rank == 0:
            print("galampi: interrupted", file=sys.stderr, flush=True)
        end_ranks(_INTERRUPTED)
        return _INTERRUPTED
    except BaseException as error:
        end_failed(error)
        return 1


def _open_closed_streams() -> None:
    """Have a closed standard stream lead nowhere: the next file that is opened, as a run's, would take its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _ignore_released_files() -> None:
    """Say nothing of a file that could not be written and is let go: that it could not is raised besides.

    h5py prints such an error twice, with a traceback and as one that is ignored.
    """

    def printed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if "decrement id ref count" not in str(error):
            sys.__excepthook__(kind, error, trace)

    def ignored(unraisable: sys.UnraisableHookArgs) -> None:
        if "h5py" not in f"{unraisable.err_msg} {unraisable.object!r}":
            sys.__unraisablehook__(unraisable)

    sys.excepthook, sys.unraisablehook = printed, ignored


if __name__ == "__main__":
    sys.exit(main())
