"""The errors a person is meant to read, and the exit codes that go with them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a job or command returns to its caller."""

    OK = 0
    UNEXPECTED = 1  # a defect: the log has a stack trace
    BAD_INPUT = 2  # settings, arguments, bucket, weights: the message says what to change
    GATE_FAILED = 3  # the run is sound but its result may not be published
    CONFLICT = 4  # another run published in between: plan again


class FruitsError(Exception):
    """Something a person can mend. The message names the thing, what was expected and what to do."""

    exit_code = ExitCode.BAD_INPUT


EXECUTOR_ERROR = f"{FruitsError.__module__}.{FruitsError.__qualname__}: "
"""What stands before a ``FruitsError``'s message in Spark's account of an executor's failure."""


class TransientError(FruitsError):
    """A server did not answer, or others were always quicker: the same again may succeed."""


class GateError(FruitsError):
    """A required gate failed; readers stay where they were."""

    exit_code = ExitCode.GATE_FAILED


class ConflictError(FruitsError):
    """Another run published since this one was planned."""

    exit_code = ExitCode.CONFLICT
