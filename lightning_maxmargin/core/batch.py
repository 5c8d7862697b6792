"""Many small instances as one batch, laid out so that every operation runs along the instances.

Softmax over a last axis of 8 costs 17 times one over the first axis, so tensors here have the instances last: keys are
(d, T, n, B). One step of a thousand instances (n=6, T=8, d=10, float32, one thread) is about 0.4 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_maxmargin.core.copies import find_copies


@dataclass(frozen=True)
class Instances:
    """B instances of n sequences of T tokens, instances last.

    Attributes:
        keys: (d, T, n, B).
        values: (dv, T, n, B); the keys themselves where they are one.
        labels: (n, B) in {-1, 1}; 0 at sequences that only fill an instance up to n.
        queries: (dq, n, B), or None for the shared prompt.
        mask: (T, n, B) bool, True at real tokens, or None.
    """

    keys: Tensor
    values: Tensor
    labels: Tensor
    queries: Tensor | None = None
    mask: Tensor | None = None

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Instances:
        """The instances in this dtype, on this device; keys and values stay one tensor where they were one."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        keys = self.keys.to(device=device, dtype=dtype)
        values = keys if self.values is self.keys else self.values.to(device=device, dtype=dtype)
        labels = self.labels.to(device=device, dtype=dtype)
        return Instances(keys, values, labels, move(self.queries), move(self.mask))

    @cached_property
    def copies(self) -> tuple[Tensor | None, bool]:
        """``first`` (T, n, B), in floating point, and ``near`` of :class:`~lightning_maxmargin.core.copies.Copies`."""

        def rows(x: Tensor) -> Tensor:
            return x.permute(*reversed(range(x.ndim))).flatten(0, 1)

        _, T, n, B = self.keys.shape
        keys = rows(self.keys)
        values = keys if self.values is self.keys else rows(self.values)
        found = find_copies(keys, values, None if self.mask is None else rows(self.mask))
        # Floating, because a product with another kind takes 6 times as long.
        first = None if found.first is None else found.first.view(B, n, T).permute(2, 1, 0).to(self.keys).contiguous()
        return first, found.near

    @staticmethod
    def stack(
        keys: Tensor,
        labels: Tensor,
        values: Tensor | None = None,
        queries: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Instances:
        """From instances first, keys (B, n, T, d), as everywhere else in this package.

        Example:
            >>> Instances.stack(torch.zeros(5, 4, 3, 2), torch.ones(5, 4)).keys.shape
            torch.Size([2, 3, 4, 5])
        """

        def turn(x: Tensor) -> Tensor:
            return x.permute(*reversed(range(x.ndim))).contiguous()

        k = turn(keys)
        return Instances(
            k,
            k if values is None else turn(values),
            turn(labels).to(k.dtype),
            None if queries is None else turn(queries),
            None if mask is None else turn(mask),
        )


def contract(weights: Tensor, tokens: Tensor) -> Tensor:
    """sum_j weights_j tokens_j over the first axis: (d, B) or (d, n, B) and (d, T, n, B) to (T, n, B).

    In place, one axis at a time: 61 us where einsum takes 3,130 us (d=10, T=8, n=6, B=1000, float32).

    Example:
        >>> contract(torch.ones(2, 1), torch.ones(2, 3, 1, 1)).flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    return sum_of_products(tokens.unbind(), weights.unbind())


def scores(data: Instances, weight: Tensor) -> Tensor:
    """a_it of every instance, (T, n, B), from p (d, B) or W (d, dq, B)."""
    if data.queries is None:
        return contract(weight, data.keys)
    return contract(targets(data.queries, weight), data.keys)


def targets(queries: Tensor, weight: Tensor) -> Tensor:
    """W z_i, (d, n, B), from W (d, dq, B) and z (dq, n, B)."""
    return sum_of_products(weight[:, :, None].unbind(1), queries.unbind())


def token_scores(data: Instances, head: Tensor) -> Tensor:
    """Y_i v'x_it of every instance, (T, n, B), from v (dv, B); 0 at sequences that only fill.

    Example:
        >>> data = Instances.stack(torch.tensor([[[[0.0], [2.0]]]]), -torch.ones(1, 1))
        >>> token_scores(data, torch.tensor([[3.0]])).flatten().tolist()
        [-0.0, -6.0]
    """
    return contract(head, data.values).mul_(data.labels)


def sum_of_products(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """sum_j a_j b_j, in place."""
    (first, *rest) = zip(a, b, strict=True)
    total = first[0] * first[1]
    for x, y in rest:
        total.addcmul_(x, y)
    return total
