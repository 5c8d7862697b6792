"""Rates and losses of the instances of an ensemble: lists that are assigned cyclically."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_maxmargin.core.losses import Loss
from lightning_maxmargin.errors import InputError


class CyclicOptions:
    """Instance b takes entry b modulo the length of a list.

    Args:
        lists: entries by the name of the option: losses of ``loss``, numbers of all others.

    Example:
        >>> options = CyclicOptions(attention_lr=[0.1, 1.0], head_lr=[1.0])
        >>> options.of("attention_lr", range(3)), options.assigned(2)
        ([0.1, 1.0, 0.1], {'attention_lr': [0.1, 1.0]})
    """

    def __init__(self, **lists: list[Any]) -> None:
        self._lists = lists

    def check(self) -> None:
        """Refuses empty lists and numbers that are not positive.

        Raises:
            InputError: there is one.
        """
        for name, values in self._lists.items():
            if not values or (name != "loss" and not all(0 < x < math.inf for x in values)):
                given = [getattr(x, "name", x) for x in values]
                raise InputError(f"model.{name}: {given}; expected a positive number or a list of them")

    def check_count(self, count: int) -> None:
        """Refuses lists of more entries than there are instances.

        Raises:
            InputError: there is one.
        """
        for name, values in self._lists.items():
            if len(values) > count:
                raise InputError(f"model.{name}: {len(values)} entries for {count} instances")

    def entries(self, name: str) -> list[Any]:
        """The list itself."""
        return self._lists[name]

    def of(self, name: str, instances: Iterable[int]) -> list[Any]:
        """What these instances take."""
        values = self._lists[name]
        return [values[b % len(values)] for b in instances]

    def assigned(self, count: int) -> dict[str, list[Any]]:
        """What each of ``count`` instances takes of the lists with more than one entry, losses by name."""
        lists = {name: [x.name if isinstance(x, Loss) else x for x in values] for name, values in self._lists.items()}
        return {k: [x[b % len(x)] for b in range(count)] for k, x in lists.items() if len(x) > 1}


def listed(x: Any) -> list[Any]:
    """A list of one entry where it is not one already."""
    return list(x) if isinstance(x, Sequence) and not isinstance(x, str) else [x]
