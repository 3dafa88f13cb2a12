"""Errors a user can act on: one line that names the file and the cure, and an exit code.

Exit codes follow the BIDS-Apps execution specification (draft).
"""


class AppError(Exception):
    """A failure with a one-line message for the user; other exceptions are bugs."""

    exit_code = 1


class InvalidBids(AppError):
    """The input data set is not valid BIDS."""

    exit_code = 16


class UnknownLevel(AppError):
    """The analysis level is none that this App knows."""

    exit_code = 17


class NothingSelected(AppError):
    """Filters, labels or contrasts left no file to work on."""

    exit_code = 18


class UsageProblem(AppError):
    """Options that contradict each other or cannot be read."""

    exit_code = 64


class BadData(AppError):
    """A file that exists but cannot be used."""

    exit_code = 65


class InputMissing(AppError):
    """A file or folder that should be there is not."""

    exit_code = 66


class CannotCreate(AppError):
    """An output that may not be created."""

    exit_code = 73


class StorageProblem(AppError):
    """The disk is full or failing."""

    exit_code = 74


class TryAgainLater(AppError):
    """A resource that is busy now: a lock, a scheduler."""

    exit_code = 75
