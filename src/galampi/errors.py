"""The errors a user can meet.

GalampiError
├── UserError          the user's mistake: one clear line, exit code 2
│   ├── JobError       a job file or an override holds something that is not allowed
│   └── ResultsError   a file of results is missing, truncated, foreign or of another version
│       ├── UnreadableError    a file may not be read, or the system fails to; what it holds is not known
│       └── UntoldError    files are whole, but do not tell which rank averaged which message
├── LostRankError      a rank is gone or was never part of the job, exit code 1
└── BrokenRunError     what one rank alone has met after training had begun, and can't go on with, exit code 1
"""

from collections.abc import Collection


class GalampiError(Exception):
    """Any error this package raises on purpose."""


USERS_FAILURES = (Exception, SystemExit)
"""What code of the user's may raise where it is called; `sys.exit()` in it is meant for a program of its own."""


class UserError(GalampiError):
    """A mistake the user can mend; its text is the one line that is shown."""


class JobError(UserError):
    """A job file or an override holds an unknown key or a value that is not allowed."""


class ResultsError(UserError):
    """A results file is missing, truncated, foreign or of an unknown version."""


class UnreadableError(ResultsError):
    """A results file may not be read, or the file system fails to: nothing is said of what it holds."""


class UntoldError(ResultsError):
    """Files do not tell the exchange of a run; a report gives it as the reason why there is no bound."""


class LostRankError(GalampiError):
    """A rank ended or fell silent, so that the job cannot go on as asked."""


class BrokenRunError(GalampiError):
    """A rank cannot go on, for a reason outside this package: its text is the one line that is shown."""


def one_of(what: str, value: str, choices: Collection[str]) -> str:
    """Return a value that is one of some choices.

    Raises:
        UserError: It is none of them.
    """
    if value not in choices:
        raise UserError(f"{what} is {value!r}; must be one of {', '.join(map(repr, choices))}")
    return value


def os_error_line(error: OSError) -> str:
    """Say in a line what the system answered, and of which file."""
    reason = error.strerror or " ".join(str(error).split())
    return f"{error.filename}: {reason}" if error.filename else reason
