"""The description of a module's outputs, as `schema.json` holds it."""

from __future__ import annotations

import importlib
import json
import logging
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_ARROW_NAMES = {
    torch.float16: "halffloat", torch.float32: "float", torch.float64: "double", torch.bool: "bool",
    torch.int8: "int8", torch.int16: "int16", torch.int32: "int32", torch.int64: "int64", torch.uint8: "uint8",
}  # fmt: skip
# The functions of pyarrow that are not called as their types.
_FUNCTIONS = {"halffloat": "float16", "float": "float32", "double": "float64", "bool": "bool_"}
_SHAPE = "list<int64>"


@dataclass
class OutputSchema:
    """The columns that an output of the module would have in Arrow, and the kind of the output.

    The store describes its rows itself. This file tells people and programs what the first output looked like.
    """

    output_structure: str
    """`"tensor"`, `"dict"`, `"tuple"`, `"list"`, or `"blob"` for any other value."""
    fields: list[tuple[str, str]]
    """Names and types of the columns."""
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any) -> OutputSchema:
        """The schema of a sample."""
        key = [("key", "string")]
        if torch.is_tensor(output):
            return cls("tensor", key + _columns("", output), {"torch_dtype": str(output.dtype)})
        if isinstance(output, dict):
            tensors = [name for name, value in output.items() if torch.is_tensor(value)]
            columns = [column for name, value in output.items() for column in _columns(f"{name}_", value)]
            return cls("dict", key + columns, {"tensor_keys": json.dumps(tensors)})
        if isinstance(output, (list, tuple)):
            columns = [column for at, value in enumerate(output) for column in _columns(f"item{at}_", value)]
            return cls("tuple" if isinstance(output, tuple) else "list", key + columns)
        return cls("blob", key + _columns("", output))

    @classmethod
    def load(cls, path: Path) -> OutputSchema | None:
        """The schema in a file. None if there is none, or it cannot be read: it is then derived again."""
        try:
            content = json.loads(path.read_text())
            fields = [(str(entry["name"]), str(entry["type"])) for entry in content["fields"]]
            return cls(str(content["output_structure"]), fields, dict(content.get("metadata", {})))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read and is written again at the next put: %s", path, error)
            return None

    def save(self, path: Path) -> None:
        """Replaces the file."""
        fields = [{"name": name, "type": kind} for name, kind in self.fields]
        content = {"fields": fields, "metadata": self.metadata, "output_structure": self.output_structure}
        replace_text(path, json.dumps(content, indent=2) + "\n")

    def to_arrow(self) -> Any:
        """The `pyarrow.Schema`."""
        try:
            pyarrow = importlib.import_module("pyarrow")
        except ImportError as error:
            raise ImportError(
                "the schema is a pyarrow.Schema, and pyarrow could not be imported: install it with "
                "`pip install tensorcask[arrow]`"
            ) from error

        def typed(name: str) -> Any:
            if name.startswith("list<"):
                return pyarrow.list_(typed(name[len("list<"): -1]))
            return getattr(pyarrow, _FUNCTIONS.get(name, name))()

        return pyarrow.schema([(name, typed(kind)) for name, kind in self.fields], metadata=self.metadata or None)


def _columns(prefix: str, value: Any) -> list[tuple[str, str]]:
    if torch.is_tensor(value):
        # Arrow has no other types of torch, such as bfloat16.
        return [(f"{prefix}data", f"list<{_ARROW_NAMES.get(value.dtype, 'float')}>"), (f"{prefix}shape", _SHAPE)]
    return [(f"{prefix}blob", "binary")]


def replace_text(path: Path, text: str) -> None:
    """Writes a file under another name and renames it, so that no reader sees a part of it.

    The file only describes a cache, so a failure is logged.
    """
    # Several processes may write it.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        logger.warning("%s is not written: %s", path, error)
        temporary.unlink(missing_ok=True)
