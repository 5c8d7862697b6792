"""Attention pooling: the naive way, and centred at the selected token so that gradients survive saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.core.selection import hide, select, take_token


def masked_softmax(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax over real tokens; exactly zero on padding and on rows without a token.

    Args:
        scores: (n, T).
        mask: (n, T) bool, True at real tokens.

    Example:
        >>> masked_softmax(torch.zeros(1, 2), torch.tensor([[True, False]])).tolist()
        [[1.0, 0.0]]
    """
    if mask is None:
        return scores.softmax(1)
    # A finite floor instead of -inf: a row of -inf alone would be NaN, forward and backward.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1) * mask


def naive_pool(scores: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum_t s_t x_t as it stands: its gradient is rounding noise once 1 - s_alpha < eps.

    Args:
        scores: (n, T).
        values: (n, T, d).
        mask: (n, T) bool.

    Returns:
        pooled (n, d), attention (n, T).

    Example:
        >>> pooled, attention = naive_pool(torch.zeros(1, 2), torch.tensor([[[2.0], [4.0]]]))
        >>> pooled.tolist(), attention.tolist()
        ([[3.0]], [[0.5, 0.5]])
    """
    attention = masked_softmax(scores, mask)
    return torch.einsum("nt,ntd->nd", attention, values), attention


def centred_pool(
    scores: Tensor, values: Tensor, mask: Tensor | None = None, centred: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_alpha + sum_t s_t (x_t - x_alpha) with s = softmax(a - a_alpha): the same number, with a live gradient.

    Softmax backward forms s_t (u_t - sum_k s_k u_k). Centred, the selected entry u_alpha is exactly 0, so the
    difference no longer cancels: the gradient keeps its relative accuracy until s_t itself underflows
    (||p|| about 100 in float32 and 745 in float64 at unit margin); beyond that see
    :func:`~lightning_maxmargin.core.exact.exact_directions`.

    Where a key is the selected one's, or near it, hand in ``centred``, made of differences of keys: the gradient of
    a difference of scores is a difference of sums, whose rounding is more than every e^-gap.

    Args:
        scores: (n, T).
        values: (n, T, d).
        mask: (n, T) bool.
        centred: (n, T), a_it - a_i,alpha for the first largest score; taken from ``scores`` where None.

    Returns:
        pooled (n, d), attention (n, T).

    Example:
        >>> pooled, s = centred_pool(torch.tensor([[0.0, 90.0]]), torch.tensor([[[1.0], [3.0]]]))
        >>> pooled.tolist(), s.tolist()[0][1]
        ([[3.0]], 1.0)
    """
    alpha = select(scores.detach(), mask)
    anchor = take_token(values, alpha)
    if mask is not None:
        anchor = anchor.masked_fill(~mask.any(1, keepdim=True), 0.0)
    if centred is None:
        centred = scores - take_token(scores, alpha)[:, None]
    attention = hide(centred, mask).exp()
    # The selected entry is exactly exp(0) = 1, so the sum is at least 1 and a padded row divides by no zero.
    attention = attention / attention.sum(1, keepdim=True).clamp_min(1)
    # Without the selected entry: sum_t s_t (x_t - x_alpha) and no (n, T, d) copy of the differences.
    others = attention.scatter(1, alpha[:, None], 0.0)
    return anchor + torch.einsum("nt,ntd->nd", others, values) - others.sum(1, keepdim=True) * anchor, attention
