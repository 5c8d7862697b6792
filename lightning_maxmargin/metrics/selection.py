"""What attention selects: mass, entropy, accuracy, and whether the selection is locally or globally optimal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_maxmargin.core import take_token
from lightning_maxmargin.core.selection import hide


def selected_mass(attention: Tensor, selected: Tensor) -> Tensor:
    """The attention on the selected token, s_{i,alpha_i}, (n,).

    Args:
        attention: s (n, T).
        selected: alpha (n,) token indices.

    Example:
        >>> selected_mass(torch.tensor([[0.75, 0.25]]), torch.tensor([0])).tolist()
        [0.75]
    """
    return take_token(attention, selected)


def entropy(attention: Tensor) -> Tensor:
    """-sum_t s_it log s_it in nats, (n,); 0 log 0 = 0.

    Args:
        attention: s (n, T).

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0]])).tolist()
        [0.0]
    """
    return torch.special.entr(attention).sum(1)


def sparsity(attention: Tensor) -> Tensor:
    """||s_i||_1 / ||s_i||_inf, (n,): 1 for one token alone, T for all alike; 0 for a row of zeros.

    Source: MMTS, the figure on attention maps of a trained vision transformer.

    Args:
        attention: s (n, T).

    Example:
        >>> sparsity(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    return attention.sum(1) / attention.max(1).values.clamp_min(torch.finfo(attention.dtype).tiny)


def globally_optimal(token_scores: Tensor, selected: Tensor, mask: Tensor | None = None) -> Tensor:
    """Whether no token has a larger gamma than the selected one, (n,) bool.

    Args:
        token_scores: (n, T), gamma_it = Y_i v'x_it.
        selected: (n,).
        mask: (n, T) bool.

    Source: MMTS, the globally optimal tokens.

    Example:
        >>> globally_optimal(torch.tensor([[1.0, 2.0]]), torch.tensor([0])).tolist()
        [False]
    """
    return take_token(token_scores, selected) >= hide(token_scores, mask).max(1).values


def locally_optimal(token_scores: Tensor, selected: Tensor, support: Tensor) -> Tensor:
    """Whether the selected token has a larger gamma than every support neighbour, (n,) bool.

    Args:
        token_scores: (n, T), gamma_it.
        selected: (n,).
        support: (s, 2), the (sequence, token) of the tight rows of the Att-SVM.

    Source: MMTS, the locally optimal tokens: gamma_{i,alpha_i} > gamma_it for all support neighbours t.

    Example:
        >>> locally_optimal(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.tensor([[0, 1]])).tolist()
        [False]
    """
    i, t = support.long().unbind(1)
    beaten = i[take_token(token_scores, selected)[i] <= token_scores[i, t]]
    return torch.ones(len(token_scores), dtype=torch.bool, device=token_scores.device).index_fill(0, beaten, False)


class SelectionAccuracy(Metric):
    """Share of sequences whose most attended token is the planted one.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = SelectionAccuracy()
        >>> metric.update(torch.tensor([1, 2]), torch.tensor([1, 0]))
        >>> metric.compute().item()
        0.5
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    seen: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, selected: Tensor, planted: Tensor) -> None:
        self.right += (selected == planted).sum()
        self.seen += len(planted)

    def compute(self) -> Tensor:
        return self.right / self.seen
