"""Reads an attention layer that was found, in every later pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_maxmargin.probe.affine import Affine, affine_of
from lightning_maxmargin.probe.capture import Reading, find_module
from lightning_maxmargin.probe.found import FoundAttention, Place, Seen, Unwatchable, multiplied, on_cpu, samples_first
from lightning_maxmargin.probe.layouts import Turn, in_heads, scaled, turn_of, turned_back
from lightning_maxmargin.probe.multihead import multihead_maps
from lightning_maxmargin.probe.multihead_layer import see_multihead
from lightning_maxmargin.probe.normalised import see_normalised
from lightning_maxmargin.probe.tap import Call, Projection
from lightning_maxmargin.probe.visible import QueryToken, visible_tokens, watched, watched_rows


class Heads(NamedTuple):
    """Queries and keys as they are multiplied and as they are projected, (n, heads, T, dh) each, of one pass."""

    multiplied: tuple[Tensor, Tensor]
    projected: tuple[Tensor, Tensor]


def see(call: Call, found: FoundAttention, query_token: QueryToken, most: int) -> Seen:
    """Reads a layer within a pass.

    Args:
        call: of this layer.
        found: the layer.
        query_token: whose attention, as of :func:`~lightning_maxmargin.probe.visible.watched`.
        most: pairs of sample and position.

    Raises:
        Unwatchable: its scores are not the product of its queries and keys, or no longer found where they were.
    """
    if found.multihead:
        return see_multihead(call, query_token, most)
    frame = next((f for f in reversed(call.frames) if f.name == found.owner), call.frames[-1])
    by_name = {p.name: p for p in frame.projections}
    if not {found.queries.module, found.keys.module} <= by_name.keys():
        raise Unwatchable("its projections were not called as in the first pass")
    query, key = by_name[found.queries.module], by_name[found.keys.module]
    given = multiplied(call, len(samples_first(key.output, found.swapped)))
    if given is None:
        raise Unwatchable(f"its queries are {tuple(call.queries.shape if call.queries is not None else ())}")
    if found.normalised is not None:
        return see_normalised(call, found, given, query_token, most)
    heads = _heads(given, query, key, found)
    at = watched(visible_tokens(call, len(given[0])), query_token, most)
    rows = watched_rows(call, *heads.multiplied, at)
    if isinstance(rows, str):
        raise Unwatchable(rows)
    z = samples_first(query.given, found.swapped)[at.samples, at.tokens]
    if found.rotary is None:
        factors = [scaled(a, b) for a, b in zip(heads.projected, heads.multiplied, strict=True)]
        if factors[0] is None or factors[1] is None:
            raise Unwatchable("its queries or keys are no longer what its projections return")
        keys, scale = samples_first(key.given, found.swapped), rows.scale * factors[0] * factors[1]
    else:
        turn = turn_of(found.rotary, heads.projected, heads.multiplied)
        if turn is None:
            raise Unwatchable("its rotary embedding is no longer of the form it was found in")
        keys, scale = heads.multiplied[1], rows.scale
    picked = on_cpu(_picked(keys, found, None if found.rotary is None else turn, at.samples, at.tokens))
    reading = Reading(
        picked, on_cpu(z), _values_of(by_name, found, at.samples), rows.visible.cpu(), None, None,
        positions=at.tokens.cpu(), attention=on_cpu(rows.attention.to(z.dtype)), scale=scale,
        turned=found.rotary is not None,
    )  # fmt: skip
    firsts = {p.name: (p.given[:1].detach(), p.first) for p in (query, key)}
    return Seen(reading, firsts)


def read_maps(root: nn.Module, found: FoundAttention, seen: Seen) -> Reading:
    """The reading with its maps, rows in the order of the heads; after the pass.

    Raises:
        InputError: a projection is not affine.
    """
    reading, dtype = seen.reading, seen.reading.keys.dtype
    if found.multihead:
        layer = find_module(root, found.owner)
        assert isinstance(layer, nn.MultiheadAttention)
        queries, keys, _ = multihead_maps(layer)
        reading.query_map, reading.key_map = (Affine(*(x.to(dtype) for x in whole)) for whole in (queries, keys))
        return reading
    maps = {name: affine_of(find_module(root, name), name, *first) for name, first in seen.firsts.items()}
    reading.query_map = _rows_of(maps[found.queries.module], found.queries, dtype)
    if seen.gains is not None:
        rows = seen.gains.to(dtype).repeat(found.heads)
        reading.query_map = Affine(rows[:, None] * reading.query_map.weight, rows * reading.query_map.bias)
    if not reading.turned:
        reading.key_map = _rows_of(maps[found.keys.module], found.keys, dtype)
    return reading


def _heads(given: tuple[Tensor, Tensor], query: Projection, key: Projection, found: FoundAttention) -> Heads:
    queries, keys = given
    projected = tuple(
        in_heads(samples_first(projection.output, found.swapped), place.columns)
        for projection, place in ((query, found.queries), (key, found.keys))
    )
    keys = keys[:, :: keys.shape[1] // found.kv] if keys.shape[1] > found.kv else keys
    if (queries.shape, keys.shape) != (projected[0].shape, projected[1].shape):
        raise Unwatchable(f"its queries are {tuple(queries.shape)}, and {tuple(projected[0].shape)} as projected")
    return Heads((queries, keys), (projected[0], projected[1]))


def _picked(
    keys: Tensor, found: FoundAttention, turn: Turn | None, samples: Tensor, tokens: Tensor
) -> Tensor:  # fmt: skip
    """Keys of each pair: (pairs, T, d), or (pairs, T, Hkv dh) as seen from the query's position."""
    if turn is None or found.rotary is None:
        return keys[samples]
    # (pairs, 1, 1, width / 2)
    unit = turn.unit[samples, :, tokens][:, :, None]
    return turned_back(keys[samples], found.rotary, unit, turn.query_scales).transpose(1, 2).flatten(2)


def _values_of(by_name: dict[str, Projection], found: FoundAttention, samples: Tensor) -> Tensor | None:
    if found.values is None or found.values.module not in by_name:
        return None
    output = samples_first(by_name[found.values.module].output, found.swapped)
    return on_cpu(output[..., found.values.columns.flatten().to(output.device)][samples])


def _rows_of(whole: Affine, place: Place, dtype: torch.dtype) -> Affine:
    rows = place.columns.flatten()
    return Affine(whole.weight[rows].to(dtype), whole.bias[rows].to(dtype))
