"""The exceptions of the package."""

from __future__ import annotations

from typing import Any


class TensorcaskError(Exception):
    """Any error of this package."""


class CorruptError(TensorcaskError):
    """Bytes on disk are damaged. Damage is never a miss, and never data."""


class ReadOnlyError(TensorcaskError):
    """The store was opened for reading, or its folder cannot be written to."""


class MismatchError(TensorcaskError, ValueError):
    """A row has another structure, dtype or shape than was asked for."""


class InvalidError(TensorcaskError, ValueError):
    """An argument cannot be used. Nothing was changed."""


class TrainableError(InvalidError):
    """A module has parameters that require gradients, though it has to be frozen."""


class NotReproducibleError(TensorcaskError):
    """Outputs that were computed again differ from the kept ones."""


class LockedError(TensorcaskError):
    """Another writer holds the lane."""


class FullError(TensorcaskError):
    """A cap on bytes or rows is reached."""


class ForkedError(TensorcaskError):
    """A handle from before a fork was used to write in the child."""


class StoreIOError(TensorcaskError, OSError):
    """The operating system reported an error. ``errno`` and ``filename`` are set."""


class VersionError(TensorcaskError):
    """The store was written by a newer release."""


class KeyMissingError(TensorcaskError, KeyError):
    """Keys do not exist.

    ``keys`` lists the first of them, ``count`` says how many there are.
    """

    def __init__(self, message: str, keys: list[Any] | None = None, count: int = 0) -> None:
        super().__init__(message)
        self.keys = [] if keys is None else keys
        self.count = count

    def __str__(self) -> str:
        # KeyError shows the representation of its argument.
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.keys, self.count))


class TensorcaskWarning(UserWarning):
    """Warnings of the caching layer, such as that a store failed and outputs are not kept."""


for _class in list(globals().values()):
    if isinstance(_class, type) and issubclass(_class, (TensorcaskError, TensorcaskWarning)):
        _class.__module__ = "tensorcask"
