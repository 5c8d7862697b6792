"""null where a class takes no None: a parser lets it pass for any type, and the class fails on it far from its word."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.config_errors import named_classes


def refuse_nulls(config: Mapping[str, Any], groups: Mapping[str, type], linked: Collection[str]) -> None:
    """Refuses null of a parameter whose type has no None, of every class that a config names.

    Args:
        config: of the command, parsed.
        groups: classes whose options are a group of the config, by its key.
        linked: keys that take another's value, and are null until then.

    Raises:
        InputError: one is null; the message names the key and the default.
    """
    for key, owner in groups.items():
        if isinstance(config.get(key), Mapping | Namespace):
            _check(owner, config[key], key, linked)
    for key, path, options in named_classes(config):
        module, _, name = path.rpartition(".")
        # What a parser has not imported is no class to it, and is not to be imported by its name.
        if isinstance(options, Mapping | Namespace) and module in sys.modules:
            _check(getattr(sys.modules[module], name, None), options, key, linked)


def _check(owner: Any, options: Any, key: str, linked: Collection[str]) -> None:
    for name, default in no_none(owner).items():
        if f"{key}.{name}" not in linked and options.get(name, default) is None:
            told = "give one" if default is inspect.Parameter.empty else f"leave it out for {_told(default)}"
            raise InputError(f"{key}.{name}: null is no value of it; {told}")


def _told(default: Any) -> str:
    return default.__name__ if isinstance(default, type) else repr(default)


def no_none(owner: Any) -> dict[str, Any]:
    """Parameters of a class or function whose types are known and have no None, with their defaults.

    Example:
        >>> def f(a: int, b: int | None = 3, c: float = 2.0, d=1, e: str = None): ...
        >>> no_none(f)
        {'a': <class 'inspect._empty'>, 'c': 2.0}
    """
    try:
        hints = typing.get_type_hints(owner.__init__ if isinstance(owner, type) else owner)  # type: ignore[misc]
        parameters = inspect.signature(owner).parameters
    except (TypeError, ValueError, NameError, AttributeError):
        return {}
    return {
        name: p.default
        for name, p in parameters.items()
        if name in hints and p.default is not None and not _has_none(hints[name])
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }  # fmt: skip


def _has_none(hint: Any) -> bool:
    return hint in (Any, object, None, NoneType) or any(map(_has_none, typing.get_args(hint)))
