"""What ``torch.nn.MultiheadAttention`` hides, and its projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_maxmargin.core.masks import HIDES, hidden_by
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.affine import Affine, plain


def multihead_maps(layer: nn.MultiheadAttention) -> tuple[Affine, Affine, Affine]:
    """Of queries, keys and values."""
    if layer.in_proj_weight is not None:
        weights = plain(layer.in_proj_weight).chunk(3)
    else:
        weights = tuple(plain(w) for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight))
    zero = torch.zeros(3 * layer.embed_dim, dtype=torch.float64)
    biases = (zero if layer.in_proj_bias is None else plain(layer.in_proj_bias)).chunk(3)
    q, k, v = (Affine(w, b) for w, b in zip(weights, biases, strict=True))
    return q, k, v


def multihead_visible(
    layer: nn.MultiheadAttention,
    padding: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, int, int],
    name: str,
) -> Tensor | None:
    """(n, Tq, T) bool of what each token sees; None where nothing is hidden.

    Args:
        layer: for what it adds.
        padding: its ``key_padding_mask``.
        mask: its ``attn_mask``, (Tq, T) or (n heads, Tq, T), booleans or numbers added to scores.
        shape: (n, Tq, T).
        name: of the layer, for messages.

    Raises:
        InputError: keys of its own, or a mask that changes scores without hiding their tokens.
    """
    if layer.bias_k is not None or layer.add_zero_attn:
        raise InputError(f"HeadMonitor.sources: {name!r} adds keys of its own (add_bias_kv, add_zero_attn)")
    if padding is None and mask is None:
        return None
    place = padding if padding is not None else mask
    assert place is not None
    visible = torch.ones(shape, dtype=torch.bool, device=place.device)
    if padding is not None:
        # Inside TransformerEncoderLayer it has become 0 and -inf.
        visible = visible & ~hidden_by(padding, f"HeadMonitor.sources: key_padding_mask of {name!r}")[:, None]
    if mask is not None:
        stacked = mask if mask.ndim == 2 else mask.unflatten(0, (shape[0], -1))
        hidden = stacked if mask.dtype == torch.bool else _hidden(stacked, name)
        if mask.ndim == 3:
            if bool((hidden != hidden[:, :1]).any()):
                raise InputError(f"HeadMonitor.sources: attn_mask of {name!r} hides other tokens from other heads")
            hidden = hidden[:, 0]
        visible = visible & ~hidden
    return visible


def _hidden(mask: Tensor, name: str) -> Tensor:
    hidden = mask <= HIDES
    if bool((mask[~hidden] != 0).any()):
        raise InputError(
            f"HeadMonitor.sources: attn_mask of {name!r} adds numbers to scores (a position bias); expected 0 or -inf"
        )
    return hidden
