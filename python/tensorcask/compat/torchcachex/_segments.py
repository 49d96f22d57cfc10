"""A store whose segments have the names that torchcachex gave to its segments."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._errors import InvalidError
from .._store import ValueStore, put_values

logger = logging.getLogger(__name__)

_SEALED = re.compile(r"\d{4,}-\d{10,}\.arrow")
_LINK = re.compile(r"segment_(\d+)\.arrow")


class SegmentStore(ValueStore):
    """A store that is opened for writing only while it is written to, so that each write is a sealed segment.

    Readers of Arrow files can read sealed segments. A link `segment_000000.arrow`, and so on, names each of them.
    """

    def __init__(self, folder: Path, name: str, *, creates: bool) -> None:
        super().__init__(folder, name, writes=False)
        if creates:
            # A folder that cannot be written to is refused here, and not after the first outputs were computed.
            self._open("a").close()

    def write(self, items: Mapping[str, Any]) -> dict[str, InvalidError]:
        """As `ValueStore.write`; it returns when the segment is sealed."""
        with self._open("a") as store:
            refused = put_values(store, items)
        link_segments(self.path / "segments")
        return refused


def link_segments(folder: Path) -> None:
    """Links each sealed segment that has no link yet, and removes links to segments that compaction replaced."""
    names = os.listdir(folder)
    links = {name: target for name in names if _LINK.fullmatch(name) and (target := _target(folder / name)) is not None}
    for name, target in links.items():
        if target not in names:
            (folder / name).unlink(missing_ok=True)
    linked = set(links.values())
    number = 1 + max((int(found[1]) for name in names if (found := _LINK.fullmatch(name))), default=-1)
    for segment in sorted(name for name in names if _SEALED.fullmatch(name) and name not in linked):
        try:
            os.symlink(segment, folder / f"segment_{number:06d}.arrow")
        except FileExistsError:
            # Another process links the same segments.
            logger.debug("segment_%06d.arrow exists", number)
        except OSError as error:
            # Nothing of the store depends on the links.
            logger.debug("the file system has no links: %s", error)
            return
        number += 1


def former_segments(folder: Path) -> list[str]:
    """The names of segments that torchcachex wrote."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if _LINK.fullmatch(name) and _target(folder / name) is None)


def _target(path: Path) -> str | None:
    """The segment of the same folder that a link names; None for anything else."""
    try:
        target = os.readlink(path)
    except OSError:
        return None
    return target if _SEALED.fullmatch(target) else None
