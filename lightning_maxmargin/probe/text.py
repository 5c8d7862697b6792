"""What an evaluation measures of a text selector: lead and entropy of its attention, and its Att-SVM."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.core import select
from lightning_maxmargin.keys import Value
from lightning_maxmargin.metrics.direction import direction_gap
from lightning_maxmargin.metrics.margin import attention_margin, relative_margin, score_rows
from lightning_maxmargin.metrics.selection import entropy, selected_mass

#: Entries of keys in float32 above which they wait on disk: 256 MB.
NUMBERS_IN_MEMORY = 64_000_000


class TextUnits(NamedTuple):
    """Scaled keys of documents, as attention sees them."""

    keys: Tensor  # (n, u, d)
    mask: Tensor  # (n, u) bool
    queries: Tensor | None  # (n, d)
    scores: Tensor  # (n, u)
    attention: Tensor  # (n, u)


def leads(scores: Tensor, mask: Tensor, norm: float) -> Tensor:
    """(best score - second)/||p|| of each document with two units or more.

    Args:
        scores: (n, u).
        mask: (n, u) bool.
        norm: of p or W.

    Example:
        >>> leads(torch.tensor([[3.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool), norm=2.0).tolist()
        [1.0]
    """
    rows = score_rows(scores, select(scores, mask), mask)
    return rows.min(1).values[mask.sum(1) > 1] / norm if norm > 0 else rows.new_zeros(int((mask.sum(1) > 1).sum()))


class SelectionSums:
    """Leads, entropies and mass of the attention, batch after batch."""

    def __init__(self, norm: float) -> None:
        self.norm = norm
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._margins: list[float] = []

    def update(self, scores: Tensor, attention: Tensor, mask: Tensor) -> None:
        """Adds (b, u) scores, attention and mask; documents without a unit are left out."""
        there = mask.any(1)
        scores, attention, mask = scores[there].double(), attention[there].double(), mask[there]
        selected = select(scores, mask)
        self._parts.append((leads(scores, mask, self.norm), entropy(attention), selected_mass(attention, selected)))
        if len(scores):
            self._margins.append(attention_margin(scores, selected, self.norm, mask))

    def compute(self) -> dict[str, Value]:
        """The numbers of all."""
        if not self._parts:
            return {}
        lead, spread, mass = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return {
            "margin/median_lead": float(lead.median()) if len(lead) else None,
            "margin/attention": min(self._margins, default=None),
            "attention/entropy": float(spread.mean()) if len(spread) else None,
            "attention/selected_mass": float(mass.mean()) if len(mass) else None,
        }


class TextSVM:
    """The Att-SVM of what documents select, batch after batch; their keys wait in memory, or on disk where many.

    Args:
        numbers: entries of the keys.
        longest: units of the longest document.
        folder: of the disk, where a file of 4 bytes a number is for as long.
    """

    def __init__(self, numbers: int, longest: int, folder: Path | None = None) -> None:
        from lightning_maxmargin.svm.sources import WrittenSource

        self.longest = longest
        self._written = WrittenSource(folder) if numbers > NUMBERS_IN_MEMORY else None
        self._no_room = False
        self._keys: list[npt.NDArray[Any]] = []
        self._masks: list[Tensor] = []
        self._selected: list[Tensor] = []
        self._queries: list[Tensor] = []
        self._smallest = float("inf")

    def update(self, part: TextUnits) -> None:
        """Adds documents; one of fewer than two units asks nothing of the direction."""
        several = part.mask.sum(1) > 1
        scores, mask = part.scores[several].double(), part.mask[several]
        if not len(mask) or self._no_room:
            return
        selected = select(scores, mask)
        self._smallest = min(self._smallest, float(score_rows(scores, selected, mask).min()))
        self._selected.append(selected)
        self._masks.append(padded_to(mask, self.longest))
        if part.queries is not None:
            self._queries.append(part.queries[several].double())
        # With zeros on padding and special tokens a block need not be copied each time that it is read.
        keys = torch.where(mask[:, :, None], part.keys[several], 0.0)
        block = (keys if keys.dtype == torch.float64 else keys.float()).numpy()
        if self._written is None:
            self._keys.append(block)
            return
        try:
            self._written.write(block)
        except OSError as error:
            self._no_room, self._written = True, None
            told = f"TextMonitor: no Att-SVM of all documents, whose keys found no room on disk ({error.strerror})"
            warnings.warn(f"{told}; --data.cache_dir names another folder", stacklevel=2)

    def compute(self, direction: Tensor) -> dict[str, Value]:
        """Its status, and the gap and relative margin of the direction p (d,) or W (d, dq) against it."""
        from lightning_maxmargin.svm import only, solve_att_svm

        if not self._selected or self._no_room:
            return {}
        keys = self._keys if self._written is None else self._written
        z = torch.cat(self._queries) if self._queries else None
        solution = only(solve_att_svm(keys, torch.cat(self._selected), queries=z, mask=torch.cat(self._masks)))
        norm = float(direction.norm())
        values: dict[str, Value] = {
            "status/attention": solution.status.value, "svm/duality_gap": solution.gap,
            "svm/violation": solution.violation, "svm/support": float(len(solution.support)), "svm/limit": "strict",
        }  # fmt: skip
        if solution.certified and norm > 0:
            gap = direction_gap(direction, solution.direction)
            values |= {
                "direction_gap/strict": gap,
                "direction_gap/attention": gap,
                "relative_margin/attention": relative_margin(self._smallest / norm, solution.margin),
            }
        return values


def padded_to(tokens: Tensor, longest: int) -> Tensor:
    """(n, u, ...) with zeros up to ``longest`` units."""
    more = longest - tokens.shape[1]
    return torch.cat([tokens, tokens.new_zeros(len(tokens), more, *tokens.shape[2:])], 1) if more > 0 else tokens
