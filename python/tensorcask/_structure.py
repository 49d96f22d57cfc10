"""The description of an `nn.Module`: one line for itself and for each submodule, and its variables."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ._digests import digest_of_array
from ._errors import InvalidError
from ._names import is_library, qualified_name
from ._state import written_attributes

Variable = tuple[str, torch.Tensor, dict[str, Any], str]
"""A name, a tensor, and the dict and key where it was found."""

SLOT = "_tensorcask"
"""The attribute in which instances of decorated classes keep their handle."""

# What libraries note about where a module was loaded from, and what they told the user.
_BOOKKEEPING = frozenset({SLOT, "_is_hf_initialized", "name_or_path", "warnings_issued"})
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_DEVICE_ARGUMENT = re.compile(r",? ?device='?[\w:]+'?(\(.*?\))?")
_READ = re.compile(r"\b\w+\.(\w+)\b")
_SCRIPT_PLAIN = (bool, int, float, complex, str, list, tuple, dict, type(None))
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@functools.cache
def own_attributes() -> frozenset[str]:
    """The attributes that every module has. They hold its variables, children and hooks."""
    return frozenset(vars(nn.Module())) | _BOOKKEEPING


def unwrapped(module: nn.Module) -> nn.Module:
    """The wrapped module of a cached module; any other module itself."""
    unwrap = getattr(type(module), "unwrap", None)
    if unwrap is None or type(module).__module__ != "tensorcask._module":
        return module
    found: nn.Module = unwrap(module)
    return found


def lines(module: nn.Module, text_of: Callable[[str, Any], str]) -> Iterator[tuple[str, str]]:
    """The path and the description of the module and each submodule. `text_of` describes a value under a name."""
    paths = {id(submodule): path for path, submodule in module.named_modules()}
    for path, submodule in module.named_modules():
        children = _children(path, submodule, paths)
        submodule = unwrapped(submodule)
        yield path, f"{_class_name(submodule)}({_extra(submodule)}){_attributes(path, submodule, text_of)}{children}"


def _children(path: str, module: nn.Module, paths: Mapping[int, str]) -> str:
    """The names of the children in their order, which a forward may follow. A shared module has the path of the first
    place where it is."""
    shown = []
    for name, child in module._modules.items():
        at = f"{path}.{name}" if path else name
        first = at if child is None else paths[id(child)]
        shown.append(f"{name}=None" if child is None else name if first == at else f"{name}={first}")
    # Those of lists need no text.
    return "" if shown == [str(position) for position in range(len(shown))] else f" of {', '.join(shown)}"


def _class_name(module: nn.Module) -> str:
    original = getattr(module, "original_name", None)
    if original is not None and is_scripted(module):
        return f"script {original}"
    return qualified_name(type(module))


def _extra(module: nn.Module) -> str:
    try:
        shown = module.extra_repr()
    except Exception:  # noqa: BLE001 - a module that cannot show itself is described by its attributes
        return ""
    return _ADDRESS.sub("0x", _DEVICE_ARGUMENT.sub("", shown))


def _attributes(path: str, module: nn.Module, text_of: Callable[[str, Any], str]) -> str:
    if is_scripted(module):
        return _script(module)
    generated = getattr(module, "code", None) if type(module).__module__.startswith("torch.fx") else None
    if isinstance(generated, str):
        return f" {{code: {generated}}}"
    # Tensors are among the variables.
    found = {key: vars(module)[key] for key in counted(module) if not isinstance(vars(module)[key], torch.Tensor)}
    hooks = {name: list(vars(module).get(name, {}).values()) for name in HOOKS}
    found.update({name: value for name, value in hooks.items() if value})
    if not found:
        return ""
    prefix = f"{path}." if path else ""
    return " {" + ", ".join(f"{name}: {text_of(prefix + name, found[name])}" for name in sorted(found)) + "}"


def counted(module: nn.Module) -> list[str]:
    """The names of the plain attributes that count: those that the computation itself does not write."""
    skipped = own_attributes() | written_attributes(type(module))
    return [name for name in vars(module) if name not in skipped]


def is_scripted(module: nn.Module) -> bool:
    """Whether it is a TorchScript module."""
    return isinstance(module, torch.jit.ScriptModule)


def _script(module: Any) -> str:
    """The code of a TorchScript module's methods, and the plain attributes and constants that they use."""
    parts = []
    for name in sorted(module._c._method_names()):
        code, constants = module._c._get_method(name).code_with_constants
        used = sorted(set(_READ.findall(code)))
        plain = {key: module._c.getattr(key) for key in used if module._c.hasattr(key)}
        parts += [f"{key}={value!r}" for key, value in plain.items() if isinstance(value, _SCRIPT_PLAIN)]
        found = constants.const_mapping if hasattr(constants, "const_mapping") else dict(constants)
        parts += [f"{key}={_script_constant(found[key])}" for key in sorted(found)]
        parts.append(f"{name}: {code}")
    return " {" + "; ".join(parts) + "}"


def _script_constant(value: Any) -> str:
    return digest_of_array(value) if isinstance(value, torch.Tensor) else repr(value)


def variables(module: nn.Module, prefix: str, skipped: Callable[[nn.Module, str], bool]) -> Iterator[Variable]:
    """Parameters, buffers, and tensors that are plain attributes, except those that `skipped` names.

    Raises `InvalidError` for parameters without values.
    """
    for path, submodule in unwrapped(module).named_modules(prefix=prefix):
        submodule = unwrapped(submodule)
        for owner, key, tensor in _tensors_of(submodule, skipped):
            name = f"{path}.{key}" if path else key
            _check_has_values(name, tensor)
            yield name, tensor, owner, key


def _tensors_of(
    module: nn.Module, skipped: Callable[[nn.Module, str], bool]
) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    if is_scripted(module):
        held = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        yield from ((held, key, tensor) for key, tensor in held.items())
        return
    for owner in (module._parameters, module._buffers):
        yield from ((owner, key, tensor) for key, tensor in owner.items() if tensor is not None)
    attributes, written = vars(module), written_attributes(type(module))
    for key in [key for key, value in attributes.items() if isinstance(value, torch.Tensor) and key not in written]:
        # A tensor with a history was computed from other variables, such as a normalised weight.
        if attributes[key].grad_fn is None and not skipped(module, key):
            yield attributes, key, attributes[key]


def _check_has_values(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise InvalidError(f"the variable {name!r} has no shape yet: run the module once before it is cached")
    if tensor.is_meta:
        raise InvalidError(f"the variable {name!r} is on the meta device and has no values: load the weights first")


def plain_tensors(module: nn.Module) -> dict[tuple[int, str], torch.Tensor]:
    """Tensors that are plain attributes, by the id of the module and the name."""
    found = {}
    for submodule in module.modules():
        for key, value in vars(submodule).items():
            if isinstance(value, torch.Tensor):
                found[id(submodule), key] = value
    return found


def user_classes(module: nn.Module, all_classes: bool) -> Iterator[type]:
    """The classes of the module and its submodules whose source counts, each once, in the order of the tree."""
    found: dict[type, None] = {}
    for submodule in module.modules():
        kind = type(unwrapped(submodule))
        if not is_scripted(submodule) and (all_classes or not is_library(kind.__module__)):
            found.setdefault(kind)
    yield from found
