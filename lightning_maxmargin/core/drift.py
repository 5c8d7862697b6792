"""How far the average leaves the selected token, as sign and logarithm: what moves tokens of equal value."""

from __future__ import annotations

import torch
from torch import Tensor


def log_drift(log_s: Tensor, lead: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sign and logarithm of sum_t e^(log s_t) lead_t along ``dim``, which is kept: exact where the sum underflows.

    A token as good as the selected one (lead 0) has the gradient weight -s_t drift, of the size of the other tokens'
    weights however small these are: with the drift rounded to 0 it would stop where it is.

    Args:
        log_s: log attention; -inf at hidden tokens.
        lead: token value minus the selected token's; 0 at the selected and at hidden tokens.
        dim: of the tokens.

    Returns:
        Sign (0 where every lead is 0) and logarithm (-inf there).

    Example:
        >>> sign, log = log_drift(torch.tensor([0.0, -1.0, -1e4]), torch.tensor([0.0, 0.0, -2.0]), 0)
        >>> sign.item(), round(log.item(), 3)
        (-1.0, -9999.307)
    """
    exponent = log_s + lead.abs().log()
    largest = exponent.amax(dim, keepdim=True)
    largest = largest.where(largest != -torch.inf, torch.zeros_like(largest))
    total = ((exponent - largest).exp() * lead.sign()).sum(dim, keepdim=True)
    return total.sign(), largest + total.abs().log()
