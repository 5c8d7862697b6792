"""Which tokens a query sees, read off what softmax was given, and whose attention is watched."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.core.masks import HIDES
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.tap import Call

#: An index, the first or last real token as the layer's mask has it, or every position.
QueryToken = int | Literal["auto", "all"]
#: Rounding of a score, in units of the dtype times the largest score; in half precision scores alone are rounded, and
#: the sums that make them are not.
ROUNDING, ROUNDING_OF_HALF = 64, 4


class Positions(NamedTuple):
    """Whose attention is read: (pairs,) samples and their positions."""

    samples: Tensor
    tokens: Tensor


class Rows(NamedTuple):
    """The watched rows of one layer.

    Attributes:
        visible: (pairs, T) bool.
        attention: (pairs, H, T), as the module computes it; zeros where nothing is visible.
        scale: of the product of queries and keys.
    """

    visible: Tensor
    attention: Tensor
    scale: float


def visible_tokens(call: Call, samples: int) -> Tensor:
    """(n, Tq, T) bool: what each position sees.

    Args:
        call: a softmax or a scaled dot product.
        samples: n.
    """
    if call.scores is not None:
        scores = call.scores if call.scores.ndim == 4 else call.scores.unflatten(0, (samples, -1))
        return scores[:, 0] > scores[:, 0].amax(-1, keepdim=True) + HIDES
    assert call.queries is not None
    assert call.keys is not None
    shape = (samples, call.queries.shape[-2], call.keys.shape[-2])
    seen = torch.ones(shape, dtype=torch.bool, device=call.queries.device)
    mask = call.arguments["attn_mask"]
    if mask is not None:
        seen = seen & _stacked(mask, call.queries, samples)[:, 0].expand(shape).gt(
            0 if mask.dtype == torch.bool else HIDES
        )
    return seen.tril() if call.arguments["is_causal"] else seen


def is_causal(visible: Tensor) -> bool:
    """Whether positions (n, Tq, T) see what is before them alone.

    Padding that hides from nobody else sees everything in Hugging Face's masks; such rows decide nothing.

    Example:
        >>> is_causal(torch.ones(1, 3, 3).bool().tril()), is_causal(torch.ones(1, 3, 3).bool())
        (True, False)
    """
    if visible.shape[1] != visible.shape[2] or visible.shape[1] < 2:
        return False
    sees_all = visible.all(-1)
    return not bool((visible.triu(1).any(-1) & ~sees_all).any()) and bool((~sees_all[:, :-1]).any())


def watched(visible: Tensor, query_token: QueryToken, most: int) -> Positions:
    """The positions whose attention is read.

    Args:
        visible: (n, Tq, T).
        query_token: an index; ``auto`` is the last real token where attention is causal, else the first; ``all`` is
            every position that has a choice, evenly thinned to ``most``.
        most: pairs of sample and position; else the first so many samples.

    Raises:
        InputError: an index that the sequences do not have.

    Example:
        >>> watched(torch.ones(2, 3, 3).bool().tril(), "auto", 9).tokens.tolist()
        [2, 2]
    """
    n, length, _ = visible.shape
    samples = torch.arange(min(n, most), device=visible.device)
    causal, own = is_causal(visible), visible.shape[1] == visible.shape[2]
    if query_token == "all":
        chooses = visible.sum(-1) > 1
        if own:
            chooses &= visible.diagonal(dim1=1, dim2=2)
        if causal:
            chooses &= ~visible.triu(1).any(-1)
        pairs = chooses.nonzero()
        if not len(pairs):
            return Positions(samples, torch.full_like(samples, length - 1))
        kept = torch.linspace(0, len(pairs) - 1, min(most, len(pairs)), device=pairs.device).round().long()
        return Positions(*pairs[kept].unbind(1))
    if query_token == "auto":
        if causal:
            real = visible[: len(samples)].diagonal(dim1=1, dim2=2)
            return Positions(samples, length - 1 - real.flip(1).int().argmax(1))
        first = visible[: len(samples)].any(1).int().argmax(1)
        return Positions(samples, first if own else torch.zeros_like(samples))
    if not -length <= query_token < length:
        raise InputError(f"HeadMonitor.query_token: {query_token}; there are {length} tokens")
    return Positions(samples, torch.full_like(samples, query_token % length))


def watched_rows(call: Call, queries: Tensor, keys: Tensor, at: Positions) -> Rows | str:
    """The rows of the watched positions; or, in words, what the scores hold besides queries times keys.

    Args:
        call: a softmax or a scaled dot product.
        queries: (n, H, Tq, dh), as multiplied.
        keys: (n, Hkv, T, dh), likewise.
        at: the positions.
    """
    # Sequence by sequence: a copy of the keys for each of 128 queries may be larger than the model.
    pairs = zip(at.samples.tolist(), at.tokens.tolist(), strict=True)
    product = torch.stack([_products(queries[n, :, t], keys[n]) for n, t in pairs]).double()
    if call.scores is None:
        scores = call.arguments["scale"] * product
        mask = call.arguments["attn_mask"]
        if mask is not None:
            mask = _stacked(mask, call.queries, len(queries)).expand(len(queries), -1, queries.shape[2], keys.shape[2])
            mask = mask[at.samples, :, at.tokens]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if call.arguments["is_causal"]:
            future = torch.arange(keys.shape[2], device=keys.device) > at.tokens[:, None]
            scores = scores.masked_fill(future[:, None], -torch.inf)
    else:
        stacked = call.scores if call.scores.ndim == 4 else call.scores.unflatten(0, (len(queries), -1))
        scores = stacked[at.samples, :, at.tokens].double()
    # What scaled_dot_product_attention computes is known exactly.
    return _rows(scores, product, queries if call.scores is not None else queries[:0].float())


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """(H, T) of one query (H, dh) with keys (Hkv, T, dh)."""
    return torch.einsum("kgd,ktd->kgt", query.unflatten(0, (len(keys), -1)), keys).flatten(0, 1)


def _rows(scores: Tensor, product: Tensor, like: Tensor) -> Rows | str:
    """Fits scores (pairs, H, T) = scale product + a constant of the row, where they are not hidden."""
    seen = scores > scores.amax(-1, keepdim=True) + HIDES
    # The constant of a row is free: softmax takes no notice of it.
    x, y = _centred(product, seen), _centred(scores, seen)
    scale = float((x * y).sum() / (x * x).sum()) if bool(x.any()) else like.shape[-1] ** -0.5
    neat = next((s for s in (1.0, like.shape[-1] ** -0.5) if abs(scale / s - 1) < 1e-5), scale)
    # Of diverged weights scores differ by more than any mask adds: what the product does not explain hides.
    beside = scores - neat * product
    seen = beside > beside.amax(-1, keepdim=True) + HIDES
    x, y = _centred(product, seen), _centred(scores, seen)
    info = torch.finfo(like.dtype)
    allowed = (ROUNDING if info.bits >= 32 else ROUNDING_OF_HALF) * info.eps * (1 + float((scale * x).abs().max()))
    if (off := float((y - neat * x).abs().max())) > allowed:
        return (
            "its scores are not x'W z: between the product of queries and keys and softmax they change by up to "
            f"{off:.2g}, by head or position (a position bias, a cap)"
        )
    if bool((seen != seen[:, :1]).any()):
        return "its mask hides other tokens from one head than from another"
    # Padding that sees nothing is given an even attention by some, and none by others: it is nobody's query.
    return Rows(seen[:, 0], torch.where(seen, scores, -torch.inf).softmax(-1).nan_to_num(), neat)


def _centred(x: Tensor, seen: Tensor) -> Tensor:
    x = torch.where(seen, x, 0.0)
    return torch.where(seen, x - x.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1), 0.0)


def _stacked(mask: Tensor, queries: Tensor | None, samples: int) -> Tensor:
    """(n or 1, H or 1, Tq or 1, T or 1) of any mask that ``scaled_dot_product_attention`` takes."""
    if mask.ndim == 3 and queries is not None and queries.ndim == 3 and len(mask) > 1:
        return mask.unflatten(0, (samples, -1))
    return mask[(None,) * (4 - mask.ndim)]
