"""Masks of other makers: true at tokens, whatever they are written as, or refused."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError

#: What is added to a score hides its token from here on: e^-1000 is 0 in float32.
HIDES = -1e3


def as_mask(mask: Tensor, name: str) -> Tensor:
    """bool, true at tokens, of booleans or of ones and zeros.

    Args:
        mask: any shape.
        name: what the message calls it.

    Raises:
        InputError: other numbers, such as 0 and -10000 of a mask that is added to scores: read as truths they would
            select padding alone.

    Example:
        >>> as_mask(torch.tensor([1.0, 0.0]), "mask").tolist()
        [True, False]
    """
    if mask.dtype == torch.bool:
        return mask
    truths = mask != 0
    odd = truths & (mask != 1)
    if odd.any():
        at = odd.nonzero()[0].tolist()
        hint = "; of a mask that is added to scores pass mask == 0" if bool((mask <= 0).all()) else ""
        raise InputError(
            f"{name} holds {mask[tuple(at)].item():g} at {at}; expected 1 at tokens and 0 at padding{hint}"
        )
    return truths


def hidden_by(padding: Tensor, name: str) -> Tensor:
    """bool, true at padding, of what ``MultiheadAttention`` takes: booleans, or numbers added to scores.

    Args:
        padding: any shape; 0 at tokens, and -inf or any number up to -1,000 at padding.
        name: what the message calls it.

    Raises:
        InputError: other numbers, which change scores without hiding their tokens.

    Example:
        >>> hidden_by(torch.tensor([0.0, -1e4, -torch.inf]), "key_padding_mask").tolist()
        [False, True, True]
    """
    if padding.dtype == torch.bool:
        return padding
    hidden = padding <= HIDES
    odd = ~hidden & (padding != 0)
    if odd.any():
        at = odd.nonzero()[0].tolist()
        raise InputError(
            f"{name} holds {padding[tuple(at)].item():g} at {at}; expected 0 at tokens and -inf at padding"
        )
    return hidden
