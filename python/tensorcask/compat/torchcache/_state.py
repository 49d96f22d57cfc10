"""What the outputs of a module or function depend on, apart from its inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..._digests import digest_of
from ..._identity import Given, Identity, constructor_arguments
from .._weights import Weights
from ._inputs import signature_of
from ._settings import PREFIX

CACHE = "cache_instance"
"""The attribute of a module that holds its cache."""
ORIGINAL = "__torchcache_original__"
"""The attribute of a decorated class that holds the class as it was."""
ARGUMENTS = "_torchcache_arguments"
"""The attribute of a module that holds the texts of its constructor arguments, which copies of it keep."""
FORWARD = "_torchcache_forward"
"""The attribute of a module that holds a forward which was set on the module rather than on its class."""


class State:
    """The code, constructor arguments, attributes and weights of a module, or the code of a function."""

    def __init__(self, subject: Any, compute: Callable[..., Any]) -> None:
        self.module = subject if isinstance(subject, torch.nn.Module) else None
        self.signature = signature_of(compute)
        self._subject = subject
        self._constructor: Mapping[str, str] = getattr(subject, ARGUMENTS, {})
        self._identity = self._identify()
        self._weights = Weights(self._variables)
        self._is_complete = False
        self._running = threading.local()

    def _identify(self) -> Identity:
        with _undecorated(self.module):
            return Identity(self._subject, Given(), self._constructor)

    def _variables(self) -> list[Any]:
        with _undecorated(self.module):
            return list(self._identity.variables(lambda _module, _name: False))

    def code(self) -> str:
        """The digest of everything but the weights."""
        if self._identity.changed():
            self._identity = self._identify()
            self._weights = Weights(self._variables)
        settings = self._identity.settings
        parts = [settings["structure"], sorted(settings["arguments"].items()), settings["indistinct"]]
        return digest_of(repr(parts))

    def digest(self) -> str:
        """The digest of everything."""
        if not self._is_complete:
            # The `__init__` of a subclass goes on after that of its base.
            self._identity, self._is_complete = self._identify(), True
        return f"{self.code()} {self._weights.digest()} {self.module is not None and self.module.training}"

    def weights_changed(self) -> bool:
        """Whether weights changed since the last `digest`."""
        return self._weights.changed()

    def is_running(self) -> bool:
        """Whether this thread is computing an output of it."""
        return getattr(self._running, "is_on", False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Says so while outputs are computed."""
        self._running.is_on = True
        try:
            yield
        finally:
            self._running.is_on = False

    def is_trainable(self) -> bool:
        """Whether a gradient is wanted for a parameter."""
        if self.module is None or not torch.is_grad_enabled():
            return False
        return any(parameter.requires_grad for parameter in self.module.parameters())


def describe_arguments(
    module: torch.nn.Module, constructor: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, str]:
    """The constructor arguments of a module as texts, by the names of their parameters, with defaults."""
    signature = signature_of(constructor)
    if signature is None:
        return constructor_arguments({str(at): value for at, value in enumerate(args)} | kwargs)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    folder = getattr(module, PREFIX + "persistent_cache_dir", None)
    # The same outputs are valid in another folder.
    return constructor_arguments({name: value for name, value in bound.arguments.items() if value is not folder})


@contextmanager
def _undecorated(module: torch.nn.Module | None) -> Iterator[None]:
    """Gives a module the class and the attributes that it would have without the decorator.

    A call of another thread meanwhile is computed without the cache.
    """
    if module is None:
        yield
        return
    attributes, kind = vars(module), type(module)
    own = [name for name in attributes if name in (CACHE, ARGUMENTS, FORWARD) or name.startswith(PREFIX)]
    hidden = {name: attributes.pop(name) for name in own}
    module.__class__ = vars(kind).get(ORIGINAL, kind)
    if FORWARD in hidden:
        attributes["forward"] = hidden[FORWARD]
    try:
        yield
    finally:
        module.__class__ = kind
        attributes.pop("forward", None)
        attributes.update(hidden)
