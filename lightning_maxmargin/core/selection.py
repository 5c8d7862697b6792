"""Which token is selected, and how to reach it."""

from __future__ import annotations

import torch
from torch import Tensor


def select(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """alpha_i = argmax_t a_it over real tokens, the first of equals.

    Args:
        scores: (n, T).
        mask: (n, T) bool, True at real tokens.

    Returns:
        (n,) int64.

    Example:
        >>> select(torch.tensor([[0.0, 2.0, 1.0]])).tolist()
        [1]
    """
    return hide(scores, mask).argmax(1)


def hide(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with -inf on padding."""
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def take_token(tokens: Tensor, selected: Tensor) -> Tensor:
    """The selected entry of each sequence: (n, T, ...) and (n,) to (n, ...).

    Example:
        >>> take_token(torch.tensor([[3.0, 5.0]]), torch.tensor([1])).tolist()
        [5.0]
    """
    return tokens[torch.arange(len(tokens), device=tokens.device), selected]
