"""Sequences of several instances, of any number each, as equal instances of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.core.sequences import Sequences


@dataclass(frozen=True)
class Packed:
    """B instances of up to n sequences, in float64; what fills an instance up to n has label 0 and shows one token.

    Attributes:
        keys: (B, n, T, d).
        labels: (B, n).
        values: (B, n, T, dv), the keys themselves where they are one.
        queries: (B, n, dq), or None.
        mask: (B, n, T), or None where nothing is hidden.
    """

    keys: Tensor
    labels: Tensor
    values: Tensor
    queries: Tensor | None
    mask: Tensor | None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, at: Tensor) -> Packed:
        """These instances."""
        keys = self.keys[at]
        values = keys if self.values is self.keys else self.values[at]
        rest = [None if x is None else x[at] for x in (self.queries, self.mask)]
        return Packed(keys, self.labels[at], values, *rest)


def pack(data: Sequences) -> Packed:
    """Brings the sequences of each instance together, in their order; without ``instance`` all are of one.

    Example:
        >>> data = Sequences(torch.ones(3, 2, 1), torch.ones(3), instance=torch.tensor([0, 1, 0]))
        >>> pack(data).labels.tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    instance = torch.zeros(len(data), dtype=torch.long) if data.instance is None else data.instance.cpu().long()
    _, instance, counts = instance.unique(return_inverse=True, return_counts=True)
    B, n = len(counts), int(counts.max())
    order = instance.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)

    def spread(x: Tensor) -> Tensor:
        whole = x.new_zeros(B, n, *x.shape[1:])
        whole[instance, place] = x
        return whole

    data = data.to("cpu").to(torch.float64)
    keys, labels = spread(data.keys), spread(data.labels)
    values = keys if data.values is data.keys else spread(data.values)
    mask = None if data.mask is None else spread(data.mask)
    if int(counts.min()) < n:
        mask = spread(torch.ones(data.keys.shape[:2], dtype=torch.bool)) if mask is None else mask
        mask[..., 0] |= labels == 0
    return Packed(keys, labels, values, None if data.queries is None else spread(data.queries), mask)
