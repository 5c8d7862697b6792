"""Random sequences of unit tokens: the papers' ensembles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError


class RandomData(SequenceData):
    """n sequences of T unit tokens in d dimensions, in float64.

    Args:
        n: sequences.
        T: tokens of each.
        d: dimensions.
        seed: of the one generator that draws head, tokens, queries and labels, in this order.
        queries: whether each sequence comes with a unit query of its own.
        labels: ``random`` signs, ``sign`` of the label that the unit head gives under uniform attention, or ``ones``.
        num_classes: more than 2 draws class indices at random.
        batch_size: as in :class:`SequenceData`.
        shuffle: as in :class:`SequenceData`.
        num_workers: as in :class:`SequenceData`.
        prefetch: as in :class:`SequenceData`.
        pin_memory: as in :class:`SequenceData`.

    Raises:
        InputError: a size that is not positive.

    Source: MMTS and TFSVM, the experiments on random data (unit v, X and Z, labels by sign).

    Example:
        >>> data = RandomData(n=4, T=3, d=2, seed=1).sequences("train")
        >>> data.keys.shape, round(data.keys[0, 0].norm().item(), 6)
        (torch.Size([4, 3, 2]), 1.0)
    """

    def __init__(
        self,
        n: int = 10,
        T: int = 6,
        d: int = 32,
        seed: int = 0,
        queries: bool = False,
        labels: Literal["random", "sign", "ones"] = "random",
        num_classes: int = 2,
        batch_size: int | None = None,
        shuffle: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, shuffle, seed, num_workers, prefetch, pin_memory)
        for name, size in (("n", n), ("T", T), ("d", d)):
            if size < 1:
                raise InputError(f"data.{name}: {size}; expected a positive number")
        self.num_classes = num_classes
        generator = torch.Generator().manual_seed(seed)

        def unit(*shape: int) -> Tensor:
            x = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return x / x.norm(dim=-1, keepdim=True)

        self.head = unit(d)
        keys = unit(n, T, d)
        z = unit(n, d) if queries else None
        if num_classes > 2:
            y = torch.randint(num_classes, (n,), generator=generator)
        elif labels == "random":
            y = torch.randint(2, (n,), generator=generator).double() * 2 - 1
        elif labels == "sign":
            y = torch.where(keys.mean(1) @ self.head >= 0, 1.0, -1.0).double()
        else:
            y = torch.ones(n, dtype=torch.float64)
        self._data = Sequences(keys, y, queries=z)

    def load(self) -> dict[str, Sequences]:
        return {"train": self._data}
