"""Numbers of attention heads, named ``LAYER/headH/KEY``, or ``headH/KEY`` where there is one layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import median

#: Layer, head and key of a name.
NAME = re.compile(r"(?:(.+)/)?head(\d+)/(.+)")


def medians_of_layers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The median over the heads of each layer, as ``LAYER/median/KEY``; what is no head's stays as it is.

    Example:
        >>> medians_of_layers({"a/head0/steps": 1.0, "a/head1/steps": 3.0, "seconds": 5.0})
        {'a/median/steps': 2.0, 'seconds': 5.0}
    """
    of_layer: dict[str, list[float]] = {}
    for name, x in numbers.items():
        found = NAME.fullmatch(name)
        common = name if found is None else "/".join(filter(None, (found[1], "median", found[3])))
        of_layer.setdefault(common, []).append(x)
    return {name: median(values) for name, values in of_layer.items()}


def table_of_heads(values: Mapping[str, object], key: str) -> tuple[list[str], list[list[float | None]]]:
    """The layers in their order, and for each the key of every head; None where it is undefined.

    Example:
        >>> table_of_heads({"a/head0/steps": 1.0, "a/head1/steps": None}, "steps")
        (['a'], [[1.0, None]])
    """
    layers: dict[str, dict[int, float | None]] = {}
    for name, x in values.items():
        found = NAME.fullmatch(name)
        if found is not None and found[3] == key:
            layers.setdefault(found[1] or "", {})[int(found[2])] = float(x) if isinstance(x, int | float) else None
    return list(layers), [[heads.get(h) for h in range(max(heads) + 1)] for heads in layers.values()]
