"""The text of a config: UTF-8, YAML, one mapping, and no key twice, of which YAML would take the last in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_maxmargin.errors import InputError


def check_config(given: str) -> None:
    """Refuses a config that cannot be read, or of which a part would be read over.

    Args:
        given: the path of a file, or the text itself.

    Raises:
        InputError: it is so; the message names file, line and key.

    Example:
        >>> check_config("{model: {rank: 3}, model: {rank: 4}}")
        Traceback (most recent call last):
        lightning_maxmargin.errors.InputError: config: model is there twice (line 1); keep one of them
    """
    where, text = _read(given)
    import yaml

    try:
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
        if len(nodes) != 1 or not isinstance(nodes[0], yaml.MappingNode):
            raise InputError(f"{where} is no mapping of keys to values; see --print_config")
        seen = set()
        for path, key in _keys(nodes[0], ""):
            if path in seen:
                line = f"line {key.start_mark.line + 1}"
                raise InputError(f"{where}: {path} is there twice ({line}); keep one of them")
            seen.add(path)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply; a config has a few levels") from error


def _read(given: str) -> tuple[str, str]:
    """How an error calls the config, and its text."""
    if set("{\n") & set(given):
        return "config", given
    try:
        return f"config: {given}", Path(given).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"config: {given} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"config: {given} cannot be read ({error.strerror})") from error


def _keys(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key at every depth, as ``trainer.max_steps``, which a config may also write in one word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}.{key.value}".removeprefix(".")
            yield path, key
            yield from _keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _keys(value, f"{prefix}[{i}]")
