"""Sequences of several instances, of any number each, as equal instances of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.sequences import Sequences


@dataclass(frozen=True)
class InstanceStack:
    """B instances of up to n sequences, instances first; what fills one up to n has label 0 and shows one token.

    The layout of the solvers and of what measures ensembles; :class:`~lightning_maxmargin.core.batch.Instances` is that
    of training.

    Attributes:
        keys: (B, n, T, d).
        labels: (B, n).
        values: (B, n, T, dv), the keys themselves where they are one.
        queries: (B, n, dq), or None.
        mask: (B, n, T), or None where nothing is hidden.

    Example:
        >>> stack = InstanceStack(torch.ones(3, 2, 4, 5), torch.ones(3, 2), torch.ones(3, 2, 4, 5))
        >>> stack.scores(torch.ones(3, 5, dtype=torch.float64)).shape, len(stack.part(torch.tensor([0, 2])))
        (torch.Size([3, 2, 4]), 2)
    """

    keys: Tensor
    labels: Tensor
    values: Tensor
    queries: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, at: Tensor, sequences: int | None = None) -> InstanceStack:
        """These instances, of each the first so many sequences."""
        keys = self.keys[at, :sequences]
        values = keys if self.values is self.keys else self.values[at, :sequences]
        rest = [None if x is None else x[at, :sequences] for x in (self.queries, self.mask)]
        return InstanceStack(keys, self.labels[at, :sequences], values, *rest)

    def batch(self, dtype: torch.dtype | None = None) -> Instances:
        """Laid out for training, instances last."""
        values = None if self.values is self.keys else self.values
        batch = Instances.stack(self.keys, self.labels, values, self.queries, self.mask)
        return batch if dtype is None else batch.to(dtype)

    def scores(self, weight: Tensor) -> Tensor:
        """a (B, n, T) in float64 from p (B, d) or W (B, d, dq), -inf on padding."""
        if self.queries is None:
            a = torch.einsum("bntd,bd->bnt", self.keys.double(), weight)
        else:
            a = torch.einsum("bntd,bde,bne->bnt", self.keys.double(), weight, self.queries.double())
        return a if self.mask is None else a.masked_fill(~self.mask, -torch.inf)

    def token_scores(self, head: Tensor) -> Tensor:
        """gamma (B, n, T) in float64 from v (B, dv)."""
        return self.labels.double()[..., None] * torch.einsum("bntd,bd->bnt", self.values.double(), head)


def pack(data: Sequences) -> InstanceStack:
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
    return InstanceStack(keys, labels, values, None if data.queries is None else spread(data.queries), mask)
