"""What an attention layer of a foreign module is given in one forward pass: hooks, read and removed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_maxmargin.core.masks import as_mask, hidden_by
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.affine import Affine, affine_of, plain
from lightning_maxmargin.probe.sources import AttentionSource, find_module


@dataclass
class Reading:
    """Inputs of one attention layer on some samples, and its projections; float64 on the CPU.

    Attributes:
        keys: (n, T, d), what the key projection is given.
        queries: (n, dq), what the query projection is given at the watched token.
        values: (n, T, kv * dv), what the value projection returns, or None.
        mask: (n, T) bool, true on tokens, or None.
        key_map: of the keys.
        query_map: of the queries.
    """

    keys: Tensor
    queries: Tensor
    values: Tensor | None
    mask: Tensor | None
    key_map: Affine
    query_map: Affine

    def first(self, samples: int | None) -> Reading:
        """Of the first so many samples; all where None."""
        values, mask = (None if x is None else x[:samples] for x in (self.values, self.mask))
        return replace(self, keys=self.keys[:samples], queries=self.queries[:samples], values=values, mask=mask)


Calls = dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]]


def capture(
    root: nn.Module, sources: dict[str, AttentionSource], forward: Callable[[], Any], mask: Callable[[Any], Any]
) -> dict[str, Reading]:
    """Runs ``forward`` once in evaluation mode, without gradients, and reads every source.

    Modes, hooks and every random state are afterwards what they were, also if it raises.

    Args:
        root: the module the names belong to.
        sources: by name of the layer.
        forward: the pass.
        mask: looks up a source's mask in the batch.

    Raises:
        InputError: a submodule is missing, is not called exactly once, or is given something other than (n, T, d).
    """
    calls: Calls = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(same_rng())
        stack.enter_context(_evaluating(root))
        # Its fast path never calls the layer inside, and so no hook.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as hooks:
            for name in {name for source in sources.values() for name in source.names}:
                module = find_module(root, name)
                hook = _recorder(calls.setdefault(name, []))
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            forward()
        return {layer: _read(root, source, calls, mask) for layer, source in sources.items()}


def _recorder(into: list[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        into.append((args, kwargs, output))

    return hook


@contextmanager
def same_rng() -> Iterator[None]:
    """Afterwards every random state is as before, also after an error (which Lightning's isolate_rng forgets).

    Example:
        >>> with same_rng():
        ...     a = torch.rand(1)
        >>> bool(torch.rand(1) == a)
        True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    """Each submodule by itself: one that its owner keeps in evaluation mode must stay there."""
    modes = [(module, module.training) for module in root.modules()]
    root.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read(root: nn.Module, source: AttentionSource, calls: Calls, mask: Callable[[Any], Any]) -> Reading:
    if source.attention is not None:
        return _read_multihead(root, source, calls, mask)
    if source.qkv is not None:
        x, out, whole = _projection(root, source.qkv, calls)
        if out.shape[-1] % 3:
            raise InputError(f"HeadMonitor.sources: {source.qkv!r} gives {out.shape[-1]} numbers, not three parts")
        third = plain(out.chunk(3, -1)[2])
        return _reading(source, x, x, third, mask(source.mask), whole.part(1, 3), whole.part(0, 3))
    x, _, keys = _projection(root, str(source.keys), calls)
    z, _, queries = _projection(root, str(source.queries), calls)
    values = None if source.values is None else plain(_projection(root, source.values, calls)[1])
    return _reading(source, x, z, values, mask(source.mask), keys, queries)


def _projection(root: nn.Module, name: str, calls: Calls) -> tuple[Tensor, Tensor, Affine]:
    args, kwargs, output = _once(name, calls)
    x = next(iter([*args, *kwargs.values()]), None)
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.ndim != 3:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"HeadMonitor.sources: {name!r} was given {what}; expected (n, T, d)")
    return x, output, affine_of(find_module(root, name), name, x, output)


def _once(name: str, calls: Calls) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if len(calls[name]) != 1:
        times = f"called {len(calls[name])} times" if calls[name] else "not called"
        raise InputError(f"HeadMonitor.sources: {name!r} was {times} in one forward pass; expected once")
    return calls[name][0]


#: What MultiheadAttention.forward takes, in this order.
MULTIHEAD = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


def _read_multihead(root: nn.Module, source: AttentionSource, calls: Calls, mask: Callable[[Any], Any]) -> Reading:
    name = str(source.attention)
    layer = find_module(root, name)
    if not isinstance(layer, nn.MultiheadAttention):
        raise InputError(f"HeadMonitor.sources: {name!r} is a {type(layer).__name__}, not a MultiheadAttention")
    if layer.bias_k is not None or layer.add_zero_attn:
        raise InputError(f"HeadMonitor.sources: {name!r} adds keys of its own (add_bias_kv, add_zero_attn)")
    args, kwargs, _ = _once(name, calls)
    given = dict(zip(MULTIHEAD, args, strict=False)) | kwargs
    if given.get("attn_mask") is not None or given.get("is_causal"):
        raise InputError(f"HeadMonitor.sources: {name!r} is given an attn_mask; masks other than padding are not read")
    z, x, v = (t if layer.batch_first else t.transpose(0, 1) for t in (given["query"], given["key"], given["value"]))
    if x.ndim != 3:
        raise InputError(f"HeadMonitor.sources: {name!r} was given {tuple(x.shape)}; expected (n, T, d)")
    queries, keys, values = _multihead_maps(layer)
    padding = given.get("key_padding_mask")
    # Inside TransformerEncoderLayer it has become 0 and -inf.
    hidden = None if padding is None else hidden_by(padding, f"HeadMonitor.sources: key_padding_mask of {name!r}")
    tokens = mask(source.mask) if hidden is None else ~hidden
    return _reading(source, x, z, values(plain(v)), tokens, keys, queries)


def _multihead_maps(layer: nn.MultiheadAttention) -> tuple[Affine, Affine, Affine]:
    if layer.in_proj_weight is not None:
        weights = plain(layer.in_proj_weight).chunk(3)
    else:
        weights = tuple(plain(w) for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight))
    zero = torch.zeros(3 * layer.embed_dim, dtype=torch.float64)
    biases = (zero if layer.in_proj_bias is None else plain(layer.in_proj_bias)).chunk(3)
    q, k, v = (Affine(w, b) for w, b in zip(weights, biases, strict=True))
    return q, k, v


def _reading(
    source: AttentionSource, x: Tensor, z: Tensor, values: Tensor | None, mask: Any, keys: Affine, queries: Affine
) -> Reading:
    if not -z.shape[1] <= source.query_token < z.shape[1]:
        raise InputError(f"AttentionSource.query_token: {source.query_token}; there are {z.shape[1]} tokens")
    tokens = None if mask is None else as_mask(mask.detach().cpu(), "AttentionSource.mask")
    if tokens is not None and tokens.shape != x.shape[:2]:
        raise InputError(f"AttentionSource.mask: {tuple(tokens.shape)} for keys {tuple(x.shape[:2])}")
    return Reading(plain(x), plain(z[:, source.query_token]), values, tokens, keys, queries)
