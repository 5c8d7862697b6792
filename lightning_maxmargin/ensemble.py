"""Many instances in one call: trained as one tensor, each measured against its own SVMs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.probe.ensemble import EnsembleResult, measure

__all__ = ["EnsembleResult", "measure", "train_ensemble"]


def train_ensemble(
    keys: Tensor,
    labels: Tensor,
    *,
    steps: int,
    values: Tensor | None = None,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    head: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **options: Any,
) -> EnsembleResult:
    """Trains B instances with exact directions and solves all their SVMs.

    Args:
        keys: (B, n, T, d).
        labels: (B, n) in {-1, 1}; 0 at sequences that only fill an instance up to n
            (their mask shows one token).
        steps: of every instance.
        values: (B, n, T, dv); the keys where None.
        queries: (B, n, dq): trains W; p where None.
        mask: (B, n, T) bool.
        head: (B, dv) start of v; zeros where None.
        dtype: of the training; the SVMs are solved in float64 whatever it is.
        device: of the training.
        options: of :class:`EnsembleState`: train, rates (numbers or (B,)), loss, update, compile, and the attention's
            start.

    Returns:
        EnsembleResult.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> keys = torch.nn.functional.normalize(torch.randn(20, 6, 8, 10, generator=generator), dim=-1)
        >>> v = torch.nn.functional.normalize(torch.randn(20, 10, generator=generator), dim=-1)
        >>> labels = torch.einsum("bntd,bd->bn", keys, v).sign()
        >>> result = train_ensemble(keys, labels, steps=500, head=v, train="attention", attention_lr=1.0)
        >>> result.shares()["settled"] > 0.9
        True
    """
    data = Instances.stack(keys.double(), labels.double(), values, queries, mask)
    state = EnsembleState(data.to(dtype, device), head=None if head is None else head.T, **options)
    state.run(steps)
    return measure(state, keys, labels, values, queries, mask)
