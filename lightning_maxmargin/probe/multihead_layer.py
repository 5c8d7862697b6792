"""torch's own MultiheadAttention within a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.found import FoundAttention, Place, Seen, Unwatchable, is_coarse, on_cpu
from lightning_maxmargin.probe.multihead import multihead_maps, multihead_visible
from lightning_maxmargin.probe.tap import Call
from lightning_maxmargin.probe.visible import QueryToken, is_causal, watched


def find_multihead(call: Call) -> FoundAttention:
    """The MultiheadAttention that is running."""
    layer, given = call.frames[-1].module, call.arguments
    if not isinstance(layer, nn.MultiheadAttention):
        raise Unwatchable("it calls torch's multi_head_attention_forward itself, and is no MultiheadAttention")
    name, size = call.frames[-1].name, layer.head_dim
    place = Place(name, "whole", torch.arange(layer.embed_dim).view(-1, size))
    visible = _multihead_visible(call)
    causal = visible is not None and is_causal(visible)
    if given["query"].ndim != 3:
        raise Unwatchable(f"it is given {tuple(given['query'].shape)}, one sequence without a batch")
    x = given["query"]
    return FoundAttention(name, place, place, None, swapped=True, causal=causal, multihead=True, coarse=is_coarse(x))


def see_multihead(call: Call, query_token: QueryToken, most: int) -> Seen:
    """Its rows by torch's own function, asked for the weights of each head."""
    given = call.arguments
    z, x, v = (given[name].transpose(0, 1) for name in ("query", "key", "value"))
    visible = _multihead_visible(call)
    if visible is None:
        visible = torch.ones((len(x), z.shape[1], x.shape[1]), dtype=torch.bool, device=x.device)
    at = watched(visible, query_token, most)
    ask = {"need_weights": True, "average_attn_weights": False, "is_causal": False, "training": False}
    _, weights = nn.functional.multi_head_attention_forward(**(given | ask))
    layer = call.frames[-1].module
    assert isinstance(layer, nn.MultiheadAttention)
    assert weights is not None
    values = multihead_maps(layer)[2](v.detach().cpu().double())[at.samples.cpu()].to(on_cpu(x[:0]).dtype)
    weights = torch.where(visible.any(-1)[:, None, :, None], weights, 0.0)
    reading = Reading(
        on_cpu(x[at.samples]), on_cpu(z[at.samples, at.tokens]), values, visible[at.samples, at.tokens].cpu(), None,
        None, positions=at.tokens.cpu(), attention=on_cpu(weights[at.samples, :, at.tokens].nan_to_num()),
    )  # fmt: skip
    return Seen(reading, {})


def _multihead_visible(call: Call) -> Tensor | None:
    given, layer = call.arguments, call.frames[-1].module
    assert isinstance(layer, nn.MultiheadAttention)
    shape = (given["query"].shape[1], given["query"].shape[0], given["key"].shape[0])
    try:
        return multihead_visible(
            layer, given.get("key_padding_mask"), given.get("attn_mask"), shape, call.frames[-1].name
        )
    except InputError as error:
        raise Unwatchable(str(error).removeprefix("HeadMonitor.sources: ")) from error
