"""Every public name of the package, what it says of itself, and where the site has it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pydoc
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning_maxmargin
from tests.conftest import ROOT

PACKAGES = ("", "callbacks", "core", "data", "ensemble", "figures", "kept", "metrics", "optim", "paths", "svm", "text")
SECTION = re.compile(r"^(Attributes|Args|Returns|Yields|Raises|Example):$", re.MULTILINE)
#: (n, T), (B, ...), (d,): a shape.
SHAPE = re.compile(r"\([\w' +*-]+,[^()]*\)|\(\.\.\.[^()]*\)")


@dataclass(frozen=True)
class Public:
    """A public class, function or method, and the docstring that is about its parameters."""

    name: str
    function: Callable[..., Any]
    text: str

    @property
    def parameters(self) -> list[str]:
        return [name for name in inspect.signature(self.function).parameters if name not in ("self", "cls")]

    def section(self, title: str) -> str:
        """What stands under this title, or nothing."""
        parts = SECTION.split(self.text)
        text = dict(zip(parts[1::2], parts[2::2], strict=True)).get(title, "")
        # Up to the first line that is no part of it.
        return re.split(r"\n(?=\S)", text.lstrip("\n"))[0]


def objects() -> dict[str, Any]:
    """What the ``__all__`` of the package and of its rooms name, by the first address of each."""
    found: dict[int, tuple[str, Any]] = {}
    for room in PACKAGES:
        module = importlib.import_module(f"{lightning_maxmargin.__name__}.{room}".rstrip("."))
        for name in module.__all__:
            thing = getattr(module, name)
            found.setdefault(id(thing), (f"{module.__name__}.{name}", thing))
    return dict(found.values())


def callables() -> Iterator[Public]:
    """Every public function, class and method. An inherited method, or one that a framework calls, is not its own."""
    for name, thing in objects().items():
        if inspect.isclass(thing):
            # What a Protocol says of its making is nobody's.
            if "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False):
                own = not dataclasses.is_dataclass(thing)
                if own:
                    yield Public(name, thing.__init__, inspect.cleandoc(thing.__doc__ or ""))
            yield from _methods(name, thing)
        elif callable(thing):
            yield Public(name, thing, inspect.cleandoc(thing.__doc__ or ""))


def _methods(name: str, owner: type) -> Iterator[Public]:
    for key, member in vars(owner).items():
        if key.startswith("_") or is_hook(owner, key):
            continue
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(function):
            yield Public(f"{name}.{key}", inspect.unwrap(function), inspect.cleandoc(function.__doc__ or ""))


def is_hook(owner: type, key: str) -> bool:
    """Whether a method without a docstring overrides one that has it: Lightning, torch or a base of ours says it."""
    member = vars(owner)[key]
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    return not getattr(function, "__doc__", None) and bool(inspect.getdoc(getattr(owner, key)))


def documented(section: str) -> set[str]:
    """Names that a section of Args or Attributes explains; ``*args`` counts as args."""
    lines = [line for line in section.splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    heads = [line.split(":")[0] for line in lines if len(line) - len(line.lstrip()) == indent]
    return {name.lstrip("*") for head in heads for name in re.split(r"[,\s]+", head.strip())}


def raises_input_error(function: Callable[..., Any]) -> bool:
    """Whether its own body has ``raise InputError``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return False
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    calls = (node.func for node in raised if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Name) and call.id == "InputError" for call in calls)


def takes_tensors(function: Callable[..., Any]) -> bool:
    """Whether a parameter, or what it returns, is annotated as a tensor or an array."""
    return any(re.search(r"\b(Tensor|Array)\b", str(kind)) for kind in function.__annotations__.values())


def on_pages() -> list[Any]:
    """What the pages of docs/api document."""
    text = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    names = re.findall(r"^\.\. (?:autoclass|autofunction|py:data):: (\S+)$", text, flags=re.MULTILINE)
    return [pydoc.locate(name) for name in names]
