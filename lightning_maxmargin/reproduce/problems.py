"""What the experiments train on: instances with their heads, worked examples or random, moved exactly or naively."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.stack import InstanceStack
from lightning_maxmargin.data import PaperData, RandomData
from lightning_maxmargin.metrics.margin import score_rows
from lightning_maxmargin.reproduce.naive import NaiveEnsemble


@dataclass(frozen=True)
class Problems(InstanceStack):
    """B instances in float64 with their given heads (B, dv); None where an example leaves the head to training."""

    head: Tensor | None = None

    @staticmethod
    def of(example: Any, **options: Any) -> Problems:
        """The worked example of this name in :class:`~lightning_maxmargin.data.PaperData`, as one instance."""
        data = PaperData(example, **options)
        s = data.splits["train"]
        queries, head = (None if x is None else x[None] for x in (s.queries, data.head))
        return Problems(s.keys[None], s.labels.double()[None], s.values[None], queries, head=head)

    @property
    def heads(self) -> Tensor:
        """The given heads, (B, dv)."""
        assert self.head is not None
        return self.head

    def take(self, at: Tensor) -> Problems:
        """Instances ``at``, of which some may come several times."""
        part, head = self.part(at), None if self.head is None else self.head[at]
        return Problems(part.keys, part.labels, part.values, part.queries, head=head)

    def copies(self, count: int) -> Problems:
        """The first instance, so many times."""
        return self.take(torch.zeros(count, dtype=torch.long))

    def exact(
        self, attention: Tensor | None = None, head: Tensor | None = None, dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> EnsembleState:  # fmt: skip
        """Trained by exact directions from attention (B, d) or (B, d, dq), or zeros, and head (B, dv).

        Without a head that each starts at, the given ones are kept. Several starts of one instance get a copy each.
        """
        return EnsembleState(**self._started(attention, head, dtype) | options)

    def naive(
        self, attention: Tensor | None = None, head: Tensor | None = None, dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> NaiveEnsemble:  # fmt: skip
        """The same by autograd, in any dtype."""
        return NaiveEnsemble(**self._started(attention, head, dtype) | options)

    def smallest_rows(self, weight: Tensor, selected: Tensor) -> Tensor:
        """min a_{i,alpha_i} - a_it over the rows of every instance, (B,), at the tokens ``selected``, (B, n)."""
        a = self.scores(weight)
        return score_rows(a.flatten(0, 1), selected.flatten()).view_as(a).amin((1, 2))

    def _started(self, attention: Tensor | None, head: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
        data = self if attention is None else self.copies(len(attention)) if len(self) == 1 else self
        train = "attention" if head is None and data.head is not None else "both"
        start = {"attention": attention, "head": data.head if head is None else head}
        last = {name: None if x is None else x.movedim(0, -1) for name, x in start.items()}
        return {"data": data.batch(dtype), "train": train, **last}


def draw(
    seeds: int, n: int, T: int, d: int, queries: bool = False, labels: Literal["random", "sign"] = "sign"
) -> Problems:
    """Instances of the seeds 0, 1, ...; each is the :class:`~lightning_maxmargin.data.RandomData` of its seed.

    Args:
        seeds: how many.
        n: sequences of an instance.
        T: tokens.
        d: dimensions.
        queries: whether each sequence has a query of its own.
        labels: ``random``, or ``sign``: as the head gives them under uniform attention.

    Example:
        >>> draw(3, 5, 4, 2).keys.shape
        torch.Size([3, 5, 4, 2])
    """
    sources = [RandomData(n, T, d, seed, queries, labels) for seed in range(seeds)]
    parts = [source.load()["train"] for source in sources]
    z: list[Any] = [part.queries for part in parts]
    heads: list[Any] = [source.head for source in sources]
    keys, signs = torch.stack([part.keys for part in parts]), torch.stack([part.labels for part in parts])
    return Problems(keys, signs, keys, torch.stack(z) if queries else None, head=torch.stack(heads))


def converged_note(settled: Tensor, what: str = "runs") -> str:
    """One sentence on how many converged, for the notes."""
    count = int(settled.sum())
    return (
        f"{count:,} of {settled.numel():,} {what} converged: margin at least half of the SVM's, every selected token "
        "with at least .99 of the attention. The others are counted and left out of medians."
    )
