"""Errors that a person is meant to read, and the exit codes that go with them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a job or a command."""

    OK = 0
    UNEXPECTED = 1  # a defect: the log has a stack trace
    BAD_INPUT = 2  # settings, arguments, bucket, weights: the message says what to change
    GATE_FAILED = 3  # the run is sound, but its result must not be published
    CONFLICT = 4  # another run published in between: plan again
    TRANSIENT = 5  # a server did not answer, or another run was faster: try the same again


class FruitsError(Exception):
    """An error that a person can fix. The message names the thing, the expectation and the next step."""

    exit_code = ExitCode.BAD_INPUT


EXECUTOR_ERROR = f"{FruitsError.__module__}.{FruitsError.__qualname__}: "
"""Spark puts this prefix before the message of a ``FruitsError`` that was raised on an executor."""


class TransientError(FruitsError):
    """A server did not answer, or other writers were always faster: the same attempt may succeed later."""

    exit_code = ExitCode.TRANSIENT


class DeniedError(FruitsError):
    """A server denies a request.

    Attributes:
        permission: The missing permission, such as ``s3:PutObject on arn:aws:s3:::fruits/1.jpg``; where no
            permission is known, ``access`` with the server's own words.
    """

    def __init__(self, message: str, permission: str = "access") -> None:
        super().__init__(message)
        self.permission = permission


class GateError(FruitsError):
    """A required gate failed; readers keep the publication they have."""

    exit_code = ExitCode.GATE_FAILED


class ConflictError(FruitsError):
    """Another run published since this one was planned."""

    exit_code = ExitCode.CONFLICT
