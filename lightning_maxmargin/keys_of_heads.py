"""Numbers of attention heads, named ``LAYER/headH/KEY``, or ``headH/KEY`` where there is one layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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


def layers_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Heads by layer, in their order.

    Example:
        >>> layers_of(["a/head0", "a/head1", "b/head0"])
        {'a': ['a/head0', 'a/head1'], 'b': ['b/head0']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        match = NAME.fullmatch(f"{name}/x")
        found.setdefault((match[1] or "") if match else "", []).append(name)
    return found


def heads_of(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The numbers of each head, by ``LAYER/headH`` and key.

    Example:
        >>> heads_of({"a/head0/norm/attention": 1.0, "heads/certified": 1.0})
        {'a/head0': {'norm/attention': 1.0}}
    """
    heads: dict[str, dict[str, object]] = {}
    for name, x in values.items():
        if (found := NAME.fullmatch(name)) is not None:
            head = "/".join(filter(None, (found[1], f"head{found[2]}")))
            heads.setdefault(head, {})[found[3]] = x
    return heads


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of layers, or of heads, without the parts that all of them begin and end with.

    Example:
        >>> short_names(["encoder.layer.0.attention/head1", "encoder.layer.11.attention/head1"])
        {'encoder.layer.0.attention/head1': 'layer 0/head1', 'encoder.layer.11.attention/head1': 'layer 11/head1'}
    """
    layers = list(dict.fromkeys(name.split("/head")[0] for name in names))
    parts = [layer.split(".") for layer in layers]
    front = _shared(parts)
    back = _shared([part[front:][::-1] for part in parts])
    short = {}
    for layer, part in zip(layers, parts, strict=True):
        kept = ".".join(part[front : len(part) - back])
        short[layer] = f"layer {kept}" if kept.isdigit() else kept or layer
    return {name: name.replace(layer, short[layer], 1) if (layer := name.split("/head")[0]) else name for name in names}


def _shared(lists: Sequence[Sequence[str]]) -> int:
    """Entries that all lists begin with; 0 of a single one, of which nothing would be left."""
    if len(lists) < 2:
        return 0
    return next((i for i, column in enumerate(zip(*lists, strict=False)) if len(set(column)) > 1), min(map(len, lists)))
