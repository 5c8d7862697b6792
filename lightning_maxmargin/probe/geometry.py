"""The limit problem in the norm whose margin the optimizer maximises, where that is not the Euclidean one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, without_copies
from lightning_maxmargin.metrics import direction_gap, relative_margin, score_rows

if TYPE_CHECKING:
    from lightning_maxmargin.svm import Solution


class Geometry:
    """The strict SVM of the selected tokens in another norm; solved again only when a selected token changes.

    Args:
        data: all sequences, in float64 on the CPU.
        norm: of the optimizer's ``margin_norm``: ``linf``, ``spectral``, ``nuclear``, a number, or a name that
            ``register_norm`` knows.
        warm: whether to start at the last answer.
    """

    def __init__(self, data: Sequences, norm: str | float, warm: bool = True) -> None:
        self.data, self.norm, self.warm = data, norm, warm
        self._selected: Tensor | None = None
        self._solution: Solution | None = None

    def applies(self, model: TokenSelector) -> bool:
        """Whether this norm is one of this model's direction: a vector has no singular values."""
        from lightning_maxmargin.svm.norms.registry import is_of_matrices

        return not (is_of_matrices(self.norm) and model.direction.ndim == 1)

    def values(self, model: TokenSelector, scores: Tensor, selected: Tensor) -> dict[str, float | str | None]:
        """``svm/norm``, and margin and gap in it: ``relative_margin/norm``, ``direction_gap/norm``.

        The gap is None where the optimum need not be unique (linf, spectral, nuclear): there the relative margin, 1
        exactly at an optimum, is what tells.
        """
        from lightning_maxmargin.svm import norm_of, only, solve_att_svm

        if not self.applies(model):
            return {}
        if self._selected is None or not torch.equal(selected, self._selected):
            queries = model.queries(self.data)
            warm = self._solution if self.warm else None
            solved = solve_att_svm(
                self.data.keys, selected, queries=queries, mask=self.data.mask, norm=self.norm, warm_start=warm
            )
            self._solution = only(solved)
            self._selected = selected
        solution, size = self._solution, norm_of(model.direction, self.norm)
        assert solution is not None
        found: dict[str, float | str | None] = {"svm/norm": str(self.norm)}
        if solution.status != "certified" or size == 0:
            return found
        others = without_copies(self.data.keys, selected, self.data.mask)
        least = float(score_rows(scores, selected, others).min())
        found["relative_margin/norm"] = relative_margin(least / size, solution.margin)
        if solution.unique:
            found["direction_gap/norm"] = direction_gap(model.direction, solution.direction)
        return found
