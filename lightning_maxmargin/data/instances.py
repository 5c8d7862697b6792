"""Many random problems at once, for ensembles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError


class RandomInstances(SequenceData):
    """B problems of n sequences of T unit tokens in d dimensions, in float64, each with a unit head of its own.

    Args:
        B: problems drawn.
        n: sequences of each.
        T: tokens of each sequence.
        d: dimensions.
        seed: of the one generator that draws heads, tokens, queries, labels and sizes, in this order.
        queries: whether each sequence comes with a unit query of its own (trains W; p without).
        labels: ``sign`` of the label that the unit head gives under uniform attention, ``random`` or ``ones``.
        ragged: whether sizes are drawn too, 1 to n sequences of 2 to T tokens.
        repeats: copies of each problem, next to each other: what lists of rates or losses sweep over.

    Attributes:
        head: (B * repeats, d), the unit heads.

    Raises:
        InputError: a size that is not positive.

    Source: MMTS and TFSVM, the experiments on random data.

    Example:
        >>> data = RandomInstances(B=3, n=4, T=5, d=2, repeats=2)
        >>> train = data.sequences("train")
        >>> train.keys.shape, train.instance.max().item()
        (torch.Size([24, 5, 2]), 5)
    """

    def __init__(
        self,
        B: int = 1000,
        n: int = 6,
        T: int = 8,
        d: int = 10,
        seed: int = 0,
        queries: bool = False,
        labels: Literal["sign", "random", "ones"] = "sign",
        ragged: bool = False,
        repeats: int = 1,
    ) -> None:
        super().__init__(seed=seed)
        for name, size in (("B", B), ("n", n), ("T", T), ("d", d), ("repeats", repeats)):
            if size < 1:
                raise InputError(f"data.{name}: {size}; expected a positive number")
        if ragged and T < 2:
            raise InputError(f"data.T: {T}; ragged draws lengths from 2 on")
        self.labels = labels
        self.shape = (B, n, T, d)
        self.queries, self.ragged, self.repeats = queries, ragged, repeats
        self.head = _unit(self._generator(), B, d).repeat_interleave(repeats, 0)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def load(self) -> dict[str, Sequences]:
        B, n, T, d = self.shape
        g = self._generator()
        v, keys = _unit(g, B, d), _unit(g, B, n, T, d)
        z = _unit(g, B, n, d) if self.queries else None
        labels = torch.ones(B, n, dtype=torch.float64)
        if self.labels == "random":
            labels = torch.randint(2, (B, n), generator=g).double() * 2 - 1
        elif self.labels == "sign":
            labels = torch.where(torch.einsum("bntd,bd->bn", keys, v) >= 0, 1.0, -1.0).double()
        mask = None
        kept = torch.ones(B, n, dtype=torch.bool)
        if self.ragged:
            kept = torch.arange(n) < torch.randint(1, n + 1, (B, 1), generator=g)
            mask = torch.arange(T) < torch.randint(2, T + 1, (B, n, 1), generator=g)
        # (B * repeats, n) of rows of the drawn problems, and what a problem has less than n of left out.
        rows = torch.arange(B * n).view(B, n).repeat_interleave(self.repeats, 0)
        at = rows[kept.repeat_interleave(self.repeats, 0)]
        instance = torch.arange(len(rows))[:, None].expand(-1, n)[kept.repeat_interleave(self.repeats, 0)]

        def flat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.flatten(0, 1)[at]

        k, y = keys.flatten(0, 1)[at], labels.flatten()[at]
        return {"train": Sequences(k, y, queries=flat(z), mask=flat(mask), instance=instance)}


def _unit(generator: torch.Generator, *shape: int) -> Tensor:
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)
