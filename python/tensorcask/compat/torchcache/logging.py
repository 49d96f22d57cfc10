"""Configures the root logger, from arguments and from environment variables."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

_PREFIX = "TORCHCACHE_LOG_"
_FORMAT = "[torchcache] - %(asctime)s - %(name)s - %(levelname)s - %(message)s"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"


def set_logger_config(
    level: int | None = None,
    fmt: str | None = None,
    datefmt: str | None = None,
    stream: Any | None = None,
    filename: str | os.PathLike[str] | None = None,
) -> None:
    """Replaces the handlers of the root logger.

    Args:
        level: the least level that is logged; else `TORCHCACHE_LOG_LEVEL`, a name such as `DEBUG`; else warnings.
        fmt: the format of records; else `TORCHCACHE_LOG_FMT`.
        datefmt: the format of times; else `TORCHCACHE_LOG_DATEFMT`.
        stream: where records go; else standard output.
        filename: a file that they are appended to as well; else `TORCHCACHE_LOG_FILE`; else none.
    """
    _configure(level, fmt, datefmt, stream, filename, force=True)


def configure_at_import() -> None:
    """Configures logging if an environment variable asks for it, or if nobody has configured it yet."""
    asked = any(name.startswith(_PREFIX) for name in os.environ)
    _configure(None, None, None, None, None, force=asked)


def _configure(level: Any, fmt: Any, datefmt: Any, stream: Any, filename: Any, force: bool) -> None:
    if logging.getLogger().handlers and not force:
        return
    formatter = logging.Formatter(
        fmt or os.environ.get(_PREFIX + "FMT", _FORMAT), datefmt or os.environ.get(_PREFIX + "DATEFMT", _DATE_FORMAT)
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stdout)]
    filename = filename or os.environ.get(_PREFIX + "FILE")
    if filename:
        handlers.append(logging.FileHandler(filename))
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=level or _level_of_environment(), handlers=handlers, force=force)


def _level_of_environment() -> int:
    name = os.environ.get(_PREFIX + "LEVEL")
    if name is None:
        return logging.WARNING
    level = getattr(logging, name.upper(), None)
    if isinstance(level, int):
        return level
    logging.getLogger(__name__).warning(
        "TORCHCACHE_LOG_LEVEL is %r, which is no level: set it to DEBUG, INFO, WARNING, ERROR or CRITICAL. "
        "Warnings are logged.", name,
    )  # fmt: skip
    return logging.WARNING
