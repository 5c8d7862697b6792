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
    """The selected entry of each sequence.

    Args:
        tokens: (n, T, ...).
        selected: (n,) token indices.

    Returns:
        (n, ...).

    Example:
        >>> take_token(torch.tensor([[3.0, 5.0]]), torch.tensor([1])).tolist()
        [5.0]
    """
    return tokens[torch.arange(len(tokens), device=tokens.device), selected]


def without_copies(keys: Tensor, selected: Tensor, mask: Tensor | None = None) -> Tensor | None:
    """The mask less the tokens whose key is that of the selected one: no direction puts it ahead of them.

    Equal means to 8 roundings of the larger key, as the solvers merge them, in the dtype of the keys.

    Args:
        keys: (n, T, d).
        selected: (n,).
        mask: (n, T) bool.

    Returns:
        (n, T) bool; the mask itself where there is no copy.

    Example:
        >>> without_copies(torch.tensor([[[1.0], [1.0], [2.0]]]), torch.tensor([0])).tolist()
        [[True, False, True]]
    """
    chosen = take_token(keys, selected)[:, None]
    size = torch.maximum(keys.norm(dim=2), chosen.norm(dim=2))
    copies = (keys - chosen).norm(dim=2) <= 8 * torch.finfo(keys.dtype).eps * size
    copies = copies.scatter(1, selected[:, None], False)
    if mask is not None:
        copies &= mask
    if not copies.any():
        return mask
    return ~copies if mask is None else mask & ~copies
