"""A config as a flat table, named as on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flattened(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config by the name that the command line has for it.

    Example:
        >>> dict(flattened({"data": {"class_path": "RandomData", "init_args": {"seed": 3}}, "sizes": [1, 2]}))
        {'data': 'RandomData', 'data.seed': 3, 'sizes': [1, 2]}
    """
    if isinstance(config, dict) and config:
        for key, value in config.items():
            # A class is its own name, and its arguments stand below it.
            inner = name if key in ("class_path", "init_args") else f"{name}.{key}" if name else str(key)
            yield from flattened(value, inner)
    elif isinstance(config, list) and any(isinstance(x, dict) for x in config):
        for i, value in enumerate(config):
            yield from flattened(value, f"{name}.{i}")
    else:
        yield name, config
