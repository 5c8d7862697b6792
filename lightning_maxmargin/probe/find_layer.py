"""Which submodules the queries and keys of an attention come from, told by value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from lightning_maxmargin.probe.found import FoundAttention, Place, Unwatchable, is_coarse, multiplied, samples_first
from lightning_maxmargin.probe.layouts import Rotary, find_turn, in_heads, places, same_lengths, scaled
from lightning_maxmargin.probe.multihead_layer import find_multihead
from lightning_maxmargin.probe.normalised import find_normalised
from lightning_maxmargin.probe.tap import Call, Frame, Projection
from lightning_maxmargin.probe.visible import is_causal, visible_tokens

#: Sequences on which layouts are tried.
TRIED = 2


def find(call: Call) -> FoundAttention:
    """The layer that computes this attention.

    Args:
        call: within its pass.

    Raises:
        Unwatchable: its queries and keys are no affine function of what its submodules are given.
    """
    if call.queries is None:
        return find_multihead(call)
    for frame in reversed(call.frames):
        usable = [p for p in frame.projections if p.output.ndim == 3]
        for swapped in (False, True) if usable else ():
            for queries, keys, rotary in _pairs(call, usable, swapped):
                visible = visible_tokens(call, usable[0].output.shape[1 if swapped else 0])
                values = _values(usable, queries, keys)
                causal, coarse = is_causal(visible), is_coarse(call.queries)
                return FoundAttention(frame.name, queries, keys, values, swapped, rotary, causal, coarse=coarse)
        both = multiplied(call, len(usable[0].output)) if usable else None
        if both is not None and (layer := find_normalised(call, frame, both)) is not None:
            return layer
    raise Unwatchable(_why_not(call))


def owner_of(call: Call) -> Frame:
    """The module that a layer which was not found is named by: the innermost with submodules that project."""
    return next((f for f in reversed(call.frames) if any(p.output.ndim == 3 for p in f.projections)), call.frames[-1])


def _pairs(
    call: Call, projections: Sequence[Projection], swapped: bool
) -> Iterator[tuple[Place, Place, Rotary | None]]:
    """Where queries and keys come from: what explains them without a rotary embedding first."""
    given_both = multiplied(call, projections[0].output.shape[1 if swapped else 0])
    if given_both is None:
        return
    few = tuple(x[:TRIED] for x in given_both)
    count = few[0].shape[1]
    asking = list(_candidates(projections, few[0], [count], count, swapped))
    given = list(_candidates(projections, few[1], [h for h in range(count, 0, -1) if count % h == 0], count, swapped))
    for (q, a, _), (k, b, keys) in product(asking, given):
        if scaled(a, few[0]) is not None and scaled(b, keys) is not None:
            yield q, k, None
    for (q, a, _), (k, b, keys) in product(asking, given):
        if (turn := find_turn((a, b), (few[0], keys))) is not None:
            yield q, k, turn[0]


def _candidates(
    projections: Sequence[Projection], target: Tensor, heads: list[int], queries: int, swapped: bool
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Places whose columns have the lengths of the target (n, H, T, dh), their columns, and the target's own heads."""
    for projection, count in product(projections, heads):
        output = samples_first(projection.output, swapped)[:TRIED]
        if output.shape[:2] != (target.shape[0], target.shape[2]) or target.shape[1] % count:
            continue
        # Heads that share their keys may have been repeated.
        own = target[:, :: target.shape[1] // count]
        for layout, columns in places(output.shape[-1], count, target.shape[-1], queries):
            candidate = in_heads(output, columns)
            if same_lengths(candidate, own) and _repeats(own, target):
                yield Place(projection.name, layout, columns), candidate, own


def _repeats(own: Tensor, target: Tensor) -> bool:
    return torch.equal(own.repeat_interleave(target.shape[1] // own.shape[1], 1), target)


def _values(projections: Sequence[Projection], queries: Place, keys: Place) -> Place | None:
    """The part of the same projection that is neither; or the one projection left, as wide as the keys."""
    by_name = {p.name: p for p in projections}
    width = by_name[keys.module].output.shape[-1]
    if queries.module == keys.module:
        count, size = keys.columns.shape
        taken = set(queries.columns.flatten().tolist()) | set(keys.columns.flatten().tolist())
        for layout, columns in places(width, count, size, len(queries.columns)):
            if width == len(taken) + columns.numel() and not taken & set(columns.flatten().tolist()):
                return Place(keys.module, layout, columns)
        return None
    left = [p for p in projections if p.name not in (queries.module, keys.module) and p.output.shape[-1] == width]
    if len(left) != 1 or keys.layout != "whole":
        return None
    return Place(left[0].name, keys.layout, keys.columns)


def _why_not(call: Call) -> str:
    """Why a call has no place, by what stands in the module that makes it."""
    assert call.queries is not None
    for frame in reversed(call.frames):
        usable = [p for p in frame.projections if p.output.ndim == 3]
        if not usable:
            continue
        norms = [p for p in frame.projections if "norm" in type(p.module).__name__.lower()]
        between = [p.name.rsplit(".", 1)[-1] for p in norms if p.output.shape[-1] == call.queries.shape[-1]]
        if between:
            return f"its queries and keys are normalised ({', '.join(between)}) before they are multiplied"
        names = ", ".join(p.name.rsplit(".", 1)[-1] for p in usable[:6])
        return (
            f"its queries {tuple(call.queries.shape)} and keys are no columns, nor rotated columns, of what its "
            f"submodules return ({names})"
        )
    return "its queries and keys come from no submodule that maps (n, T, d) to (n, T, out), but from parameters"
