"""What is part of the identity of a computation: code, values that it uses, arguments of constructors."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cache_nets import Net, batch, net
from torch import nn

import tensorcask as tc

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes and imports a module of the user. Each call takes the place of the one before."""
    written = 0

    def load(code: str) -> ModuleType:
        nonlocal written
        written += 1
        path = tmp_path / f"version{written}" / "user_code.py"
        path.parent.mkdir()
        path.write_text(code)
        spec = importlib.util.spec_from_file_location("user_code", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["user_code"] = module
        spec.loader.exec_module(module)
        return module

    return load


def misses(subject: Any, folder: str, **options: Any) -> int:
    """The number of samples that a new handle computes."""
    cached = tc.cache(subject, folder, **options)
    cached(batch())
    cached.close()
    return int(cached.stats()["misses"])


FUNCTION = """
import torch
SCALE = 2.0
def helper(x):
    return x * SCALE
def unused(x):
    return x
def embed(x, power=1):
    return helper(x) ** power
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("** power", "** (power + 1)", 4),
        ("power=1", "power=2", 4),
        ("return x * SCALE", "return x + SCALE", 4),
        ("SCALE = 2.0", "SCALE = 3.0", 4),
        ("def unused(x):\n    return x", "def unused(x):\n    return x + 1", 0),
        ("return helper(x)", "return (  # a comment\n        helper( x ) )", 0),
        ("    return helper", "    '''A docstring.'''\n\n    return helper", 0),
        ("import torch\n", "import torch\n\n\n# Moved down.\n", 0),
    ],
    ids=["code", "default", "helper", "constant", "unused", "format", "docstring", "position"],
)
def test_source_of_functions(folder: str, load: Load, old: str, new: str, expected: int) -> None:
    assert old in FUNCTION
    assert misses(load(FUNCTION).embed, folder) == 4
    assert misses(load(FUNCTION).embed, folder) == 0
    assert misses(load(FUNCTION.replace(old, new)).embed, folder) == expected


CLASSES = """
import torch
from torch import nn
class Base(nn.Module):
    factor = 1
    def activation(self, x):
        return x.relu()
class Inner(nn.Module):
    def forward(self, x):
        return x * 2
class Net(Base):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
    def forward(self, x):
        return self.activation(self.inner(x)) * self.factor
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("x.relu()", "x.tanh()"), ("x * 2", "x * 3"), ("* self.factor", "+ self.factor"), ("factor = 1", "factor = 2")],
    ids=["base", "submodule", "forward", "class-attribute"],
)
def test_source_of_the_users_own_classes(folder: str, load: Load, old: str, new: str) -> None:
    assert old in CLASSES
    assert misses(load(CLASSES).Net(), folder) == 4
    assert misses(load(CLASSES).Net(), folder) == 0
    assert misses(load(CLASSES.replace(old, new)).Net(), folder) == 4
    assert misses(load(CLASSES).Net(), folder, source=False) == 4
    assert misses(load(CLASSES.replace("x.relu()", "x.tanh()")).Net(), folder, source=False) == 0


def test_an_edited_file_that_was_not_imported_again(folder: str, load: Load) -> None:
    module = load(FUNCTION)
    path = Path(module.__file__ or "")
    path.write_text(FUNCTION.replace("** power", "** 5"))
    # What runs is the old code, so the new source must not name its outputs.
    assert misses(module.embed, folder) == 4
    edited = load(FUNCTION.replace("** power", "** 5"))
    assert misses(edited.embed, folder) == 4
    assert torch.equal(tc.cache(edited.embed, folder)(batch()), (batch() * 2) ** 5)


def test_rebinding_in_the_process(folder: str, load: Load) -> None:
    module = load(FUNCTION)
    cached = tc.cache(module.embed, folder)
    assert torch.equal(cached(batch()), batch() * 2)
    module.SCALE = 4.0
    assert torch.equal(cached(batch()), batch() * 4)
    module.helper = lambda x: x - 1
    assert torch.equal(cached(batch()), batch() - 1)
    module.SCALE = 2.0
    assert cached.stats()["misses"] == 12 and cached.stats()["hits"] == 0


def test_functions_of_other_modules(folder: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_tools.py").write_text("OFFSET = 1\ndef shift(x):\n    return x + OFFSET\n")
    code = "import user_tools\ndef embed(x):\n    return user_tools.shift(x)\n"
    assert misses(load(code).embed, folder) == 4 and misses(load(code).embed, folder) == 0
    import user_tools  # type: ignore[import-not-found]

    monkeypatch.setattr(user_tools, "OFFSET", 2)
    assert misses(load(code).embed, folder) == 4
    monkeypatch.setattr(user_tools, "shift", lambda x: x)
    assert misses(load(code).embed, folder) == 4
    del sys.modules["user_tools"]


def test_closures(folder: str) -> None:
    def make(scale: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * scale

        return scaled

    for scale in (2.0, 3.0, torch.full((3,), 2.0), torch.full((3,), 3.0)):
        assert misses(make(scale), folder) == 4
        assert misses(make(scale), folder) == 0
    weight = torch.ones(3)
    cached = tc.cache(make(weight), folder)
    cached(batch())
    weight.mul_(5)
    assert torch.equal(cached(batch()), batch() * 5)


def test_modules_in_closures_and_globals_are_watched(folder: str) -> None:
    module = net()

    def embed(x: torch.Tensor) -> torch.Tensor:
        return module(x) + GLOBAL_MODULE(x)

    cached = tc.cache(embed, folder)
    for changed in (None, module, GLOBAL_MODULE):
        if changed is not None:
            with torch.no_grad():
                next(changed.parameters()).add_(1)
        assert torch.equal(cached(batch()), embed(batch()))
    assert cached.stats()["misses"] == 12
    trainable = nn.Linear(3, 2)
    with pytest.raises(tc.TrainableError):
        tc.cache(lambda x: trainable(x), folder)


GLOBAL_MODULE = nn.Linear(3, 2).requires_grad_(False)
COUNT = 0
LOG: list[int] = []


def test_state_that_the_function_writes_does_not_count(folder: str) -> None:
    counts = {"calls": 0}
    total = 0

    def embed(x: torch.Tensor) -> torch.Tensor:
        global COUNT
        nonlocal total
        COUNT += 1
        total += 1
        counts["calls"] += 1
        LOG.append(len(x))
        return x

    for _ in range(3):
        tc.cache(embed, folder)(batch())
    assert (COUNT, total, counts["calls"], LOG) == (1, 1, 1, [4])


def test_partials_and_bound_methods(folder: str) -> None:
    def power(x: torch.Tensor, exponent: int) -> torch.Tensor:
        return x**exponent

    for exponent in (1, 2):
        assert misses(functools.partial(power, exponent=exponent), folder) == 4
        assert misses(functools.partial(power, exponent=exponent), folder) == 0
    module = net()
    cached = tc.cache(module.forward, folder)
    first = cached(batch())
    assert torch.equal(first, net()(batch()))
    with torch.no_grad():
        module.linear.bias.add_(1)
    assert torch.equal(cached(batch()), module(batch()))
    with pytest.raises(tc.TrainableError):
        tc.cache(Net().forward, folder)


def test_callable_objects(folder: str) -> None:
    class Scaled:
        def __init__(self, scale: float) -> None:
            self.scale = scale
            self.table = torch.full((3,), scale)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.table

    assert misses(Scaled(2.0), folder) == 4 and misses(Scaled(2.0), folder) == 0
    assert misses(Scaled(3.0), folder) == 4


def test_lambdas_in_one_line_are_apart(folder: str) -> None:
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert misses(one, folder, module_id="f") == 4
    assert misses(two, folder, module_id="f") == 4
    assert misses(one, folder, module_id="f") == 0


def test_code_without_a_source_file(folder: str) -> None:
    def define(code: str) -> Any:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(code, space)  # noqa: S102 - a function as an interactive session defines it
        return space["f"]

    assert misses(define("f = lambda x: x + 1"), folder, module_id="f") == 4
    assert misses(define("f = lambda x: x + 1"), folder, module_id="f") == 0
    assert misses(define("f = lambda x: x + 2"), folder, module_id="f") == 4
    assert misses(define("c = 3\ndef f(x):\n  return x + c"), folder, module_id="f") == 4
    assert misses(define("c = 4\ndef f(x):\n  return x + c"), folder, module_id="f") == 4


def test_code_that_cannot_be_seen_needs_a_version(folder: str) -> None:
    with pytest.raises(tc.InvalidError, match="version"):
        tc.cache(torch.sin, folder)
    assert misses(torch.sin, folder, version="1") == 4
    assert misses(torch.sin, folder, version="1") == 0 and misses(torch.sin, folder, version="2") == 4
    tc.cache(torch.sin)(batch())

    opaque = torch.Generator()

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3, generator=opaque)

    with pytest.raises(tc.InvalidError, match="closure opaque"):
        tc.cache(noisy, folder)
    with pytest.raises(tc.InvalidError, match="source=False"):
        tc.cache(lambda x: x, folder, source=False)


def test_arguments_and_version(folder: str) -> None:
    module = net()
    for options in ({}, {"version": "2"}, {"arguments": {"layer": 3}}, {"arguments": {"layer": "3x", "f": 0.5}}):
        assert misses(module, folder, **options) == 4
        assert misses(module, folder, **options) == 0
    with pytest.raises(TypeError, match="arguments"):
        tc.cache(module, folder, arguments=[1])  # type: ignore[arg-type]


def test_plain_attributes_count(folder: str) -> None:
    assert misses(net(scale=1.0), folder) == 4 and misses(net(scale=2.0), folder) == 4
    assert misses(net(scale=2.0), folder) == 0
    assert misses(nn.LeakyReLU(0.1), folder) == 4 and misses(nn.LeakyReLU(0.2), folder) == 4
    assert misses(nn.LeakyReLU(0.2), folder) == 0
    # The device and the mode do not.
    module = net()
    module.device = torch.device("cpu")
    assert misses(module, folder) == 4
    module.device = torch.device("cuda:1")
    assert misses(module.train(), folder) == 0


def test_check_structure_off(folder: str) -> None:
    assert misses(net(scale=1.0), folder, check_structure=False) == 4
    assert misses(net(scale=2.0), folder, check_structure=False) == 0


def test_configurations(folder: str) -> None:
    transformers = pytest.importorskip("transformers")

    def model(**changes: Any) -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
                 "vocab_size": 10} | changes  # fmt: skip
        found: nn.Module = transformers.BertModel(transformers.BertConfig(**sizes)).requires_grad_(False)
        return found

    def computed(module: nn.Module) -> int:
        cached = tc.cache(module, folder)
        tokens = torch.arange(8).reshape(2, 4)
        output = cached(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        with torch.no_grad():
            expected = module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)
        return int(cached.stats()["misses"])

    assert computed(model()) == 2 and computed(model()) == 0
    assert computed(model(hidden_act="relu")) == 2
    elsewhere = model()
    elsewhere.config._name_or_path = "/another/place"
    assert computed(elsewhere) == 0


def test_module_ids(folder: str) -> None:
    assert tc.cache(net(), folder).module_id == "Net"
    assert tc.cache(net(), folder, module_id="mine").module_id == "mine"
    assert tc.cache(_named_function, folder).module_id.endswith("test_cache_identity._named_function")
    assert "lambda" in tc.cache(lambda x: x, folder).module_id
    with pytest.raises(tc.InvalidError, match="module id"):
        tc.cache(net(), folder, module_id="a/b")


def _named_function(x: torch.Tensor) -> torch.Tensor:
    return x


def test_why_miss_names_what_differs(folder: str, load: Load) -> None:
    tc.cache(load(FUNCTION).embed, folder)(batch(1))
    changed = tc.cache(load(FUNCTION.replace("SCALE = 2.0", "SCALE = 3.0")).embed, folder)
    why = changed.why_miss(batch(1))
    assert not why.kept and "SCALE: 3.0 here, 2.0 there" in str(why) and len(why.differences[0]) == 1
    tc.cache(net(), folder, arguments={"layer": 3})(batch(1), ids=["a"])
    other = tc.cache(net(seed=1), folder, arguments={"layer": 4})
    text = str(other.why_miss("a"))
    assert "layer: 4 here, 3 there" in text and "linear.weight" in text
    assert "never kept" in str(other.why_miss(ids=["b"]))
    other(batch(1), ids=["b"])
    assert other.why_miss("b").kept
    with pytest.raises(tc.InvalidError, match="one"):
        other.why_miss(["a", "b"])


def test_unknown_options(folder: str) -> None:
    with pytest.raises(TypeError, match="did you mean 'disk_bytes'"):
        tc.cache(net(), folder, disk_byte=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="eviction|coldest"):
        tc.cache(net(), folder, evictoin="oldest")  # type: ignore[call-overload]
    with pytest.raises(tc.InvalidError, match="coldest"):
        tc.cache(net(), folder, eviction="wrong")  # type: ignore[arg-type]
    with pytest.raises(tc.InvalidError, match="leave out one"):
        tc.cache(net(), folder, place="memory")
    with pytest.raises(tc.InvalidError, match="without a folder"):
        tc.cache(net(), place="folder")


def test_options_are_documented() -> None:
    from tensorcask._options import Options

    for name in Options.__annotations__:
        assert f"{name}" in (Options.__doc__ or "")
