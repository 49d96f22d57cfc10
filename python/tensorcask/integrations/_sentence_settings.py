"""The arguments of ``SentenceTransformer.encode``: those that change values, and those that do not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# They change where, how fast and in which container embeddings are returned, but not the embeddings.
_WITHOUT_EFFECT = ("batch_size", "show_progress_bar", "device", "pool", "chunk_size")
_CONTAINER = ("convert_to_numpy", "convert_to_tensor", "precision")
_NAMED = ("prompt_name", "prompt", "output_value", "normalize_embeddings", "truncate_dim")
# Further arguments that every model takes.
_COMMON = frozenset({"task", "processing_kwargs"})


@dataclass(frozen=True)
class Encoding:
    """One call of ``encode``.

    ``values`` are the arguments that change embeddings, ``running`` those that do not, and ``key`` is the text of all
    that counts: ``values``, the resolved prompt and the settings of the model's modules.
    """

    key: str
    values: dict[str, Any]
    running: dict[str, Any] = field(default_factory=dict)
    is_token_wise: bool = False
    precision: str = "float32"
    as_numpy: bool = False
    as_tensor: bool = False


def bound(encode: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The inputs and all other arguments of a call of ``encode``, which is a bound method.

    Raises:
        TypeError: The arguments do not fit, as ``encode`` itself says.
    """
    signature = inspect.signature(encode)
    first, *_ = signature.parameters
    given = dict(kwargs)
    for alias in ("sentences", "inputs"):
        # The first parameter has had both names.
        if alias in given and alias != first and not args:
            given[first] = given.pop(alias)
    arguments = signature.bind(*args, **given)
    arguments.apply_defaults()
    named = dict(arguments.arguments)
    further = next((name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)
    if further is not None:
        named.update(named.pop(further, {}))
    return named.pop(first), named


def encoding(model: Any, arguments: Mapping[str, Any]) -> Encoding | None:
    """How a call is cached; ``None`` if ``encode`` has to run as it is.

    These calls are not cached: ``output_value=None``, whose tensors are padded to the batch; arguments of the model
    that have no text form; and arguments that ``encode`` refuses.
    """
    arguments = dict(arguments)
    output_value = arguments.get("output_value", "sentence_embedding")
    precision = arguments.get("precision") or "float32"
    is_token_wise = output_value == "token_embeddings"
    further = {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT + _CONTAINER + _NAMED}
    known = _COMMON.union(model.get_model_kwargs() if hasattr(model, "get_model_kwargs") else ())
    refused = arguments.get("batch_size", 1) <= 0 or not known.issuperset(further)
    if refused or output_value not in ("sentence_embedding", "token_embeddings"):
        return None
    if precision not in ("float32", "int8", "uint8", "binary", "ubinary") or (is_token_wise and precision != "float32"):
        return None
    prompt_name = arguments.get("prompt_name")
    prompt = arguments.get("prompt")
    if prompt is None and prompt_name is not None and prompt_name not in model.prompts:
        return None
    values: dict[str, Any] = {
        "prompt": _prompt(model, prompt, prompt_name),
        "output_value": output_value,
        "normalize_embeddings": bool(arguments.get("normalize_embeddings", False)),
        "truncate_dim": _truncate_dim(model, arguments.get("truncate_dim")),
        **further,
    }
    try:
        key = json.dumps({**values, "modules": module_settings(model)}, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError):
        return None
    as_tensor = bool(arguments.get("convert_to_tensor", False)) and not is_token_wise
    as_numpy = bool(arguments.get("convert_to_numpy", True)) and not as_tensor and not is_token_wise
    running = {name: arguments[name] for name in _WITHOUT_EFFECT if name in arguments}
    return Encoding(key, values, running, is_token_wise, precision, as_numpy, as_tensor)


def _prompt(model: Any, prompt: str | None, prompt_name: str | None) -> str | None:
    """The text before each sentence, which ``encode`` chooses in this order. An empty one is as good as none."""
    if prompt is None:
        prompt = model.prompts.get(prompt_name if prompt_name is not None else model.default_prompt_name)
    return prompt or None


def _truncate_dim(model: Any, truncate_dim: int | None) -> int | None:
    return truncate_dim if truncate_dim is not None else getattr(model, "truncate_dim", None)


def module_settings(model: Any) -> list[dict[str, Any]]:
    """The plain attributes of the model's modules, such as ``pooling_mode`` and ``max_seq_length``.

    They may be changed between calls, so they are part of each call's key.
    """
    return [_settings(module) for module in model.children()]


def _settings(module: Any) -> dict[str, Any]:
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    settings = {name: value for name, value in plain.items() if _is_plain(value)}
    settings["max_seq_length"] = getattr(module, "max_seq_length", None)
    settings["class"] = f"{type(module).__module__}.{type(module).__qualname__}"
    return settings


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def text_of(item: Any) -> str | None:
    """A text that tells inputs apart: a sentence, or a list, tuple or dict of sentences. ``None`` for other inputs."""
    if isinstance(item, str):
        return f"text:{item}"
    if not isinstance(item, (list, tuple, dict)) or not _is_plain(item):
        return None
    return f"{type(item).__name__}:{json.dumps(item, ensure_ascii=True)}"
