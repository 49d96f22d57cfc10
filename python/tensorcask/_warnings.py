"""The category of tensorcask's warnings."""

from __future__ import annotations


class TensorcaskWarning(UserWarning):
    """A warning about a cache, such as a full disk or damaged rows that were computed again."""
