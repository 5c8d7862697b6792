"""What an attention layer of a foreign module is given in one forward pass: hooks, read and removed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_maxmargin.core.masks import as_mask
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.affine import Affine, affine_of, plain
from lightning_maxmargin.probe.multihead import multihead_maps, multihead_visible
from lightning_maxmargin.probe.sources import AttentionSource, find_module


@dataclass
class Reading:
    """Inputs of one attention layer on some samples, and its projections; on the CPU, float64 or the module's dtype.

    Attributes:
        keys: (n, T, d), what the key projection is given; where they are turned, (n, T, kv * dh), what it returns with
            the rotary embedding between key and query.
        queries: (n, dq), what the query projection is given at the watched token.
        values: (n, T, kv * dv), what the value projection returns, or None.
        mask: (n, T) bool, true on tokens, or None.
        key_map: of the keys; None where they are turned.
        query_map: of the queries; None until it is read.
        positions: (n,) of the watched tokens, or None.
        attention: (n, heads, T), the rows as the module computes them, or None.
        scale: of the scores, or None.
        turned: whether the keys are those that are multiplied: turned by a rotary embedding, or normalised.
        query_scales: (n, heads) by which the queries are multiplied, where they are normalised.
    """

    keys: Tensor
    queries: Tensor
    values: Tensor | None
    mask: Tensor | None
    key_map: Affine | None
    query_map: Affine | None
    positions: Tensor | None = None
    attention: Tensor | None = None
    scale: float | None = None
    turned: bool = False
    query_scales: Tensor | None = None

    def first(self, samples: int | None) -> Reading:
        """Of the first so many samples; all where None."""
        return replace(self, **{name: x[:samples] for name, x in self.by_sample().items()})  # type: ignore[arg-type]

    def double(self) -> Reading:
        """In float64."""
        numbers = {name: x.double() for name, x in self.by_sample().items() if x.is_floating_point()}
        maps = {
            name: Affine(*(x.double() for x in whole))
            for name, whole in (("key_map", self.key_map), ("query_map", self.query_map))
            if whole is not None
        }
        return replace(self, **numbers, **maps)  # type: ignore[arg-type]

    def by_sample(self) -> dict[str, Tensor]:
        """What has a sample per entry, by name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}


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
    with quietly(root):
        with ExitStack() as hooks:
            for name in {name for source in sources.values() for name in source.names}:
                module = find_module(root, name)
                hook = _recorder(calls.setdefault(name, []))
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            forward()
        return {layer: _read(root, source, calls, mask) for layer, source in sources.items()}


@contextmanager
def quietly(root: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and every random state are afterwards what they were."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(same_rng())
        stack.enter_context(evaluating(root))
        # Its fast path never calls the layer inside, and so no hook.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        yield


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
def evaluating(root: nn.Module) -> Iterator[None]:
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
    args, kwargs, _ = _once(name, calls)
    given = dict(zip(MULTIHEAD, args, strict=False)) | kwargs
    z, x, v = (t if layer.batch_first else t.transpose(0, 1) for t in (given["query"], given["key"], given["value"]))
    if x.ndim != 3:
        raise InputError(f"HeadMonitor.sources: {name!r} was given {tuple(x.shape)}; expected (n, T, d)")
    queries, keys, values = multihead_maps(layer)
    shape = (len(x), z.shape[1], x.shape[1])
    visible = multihead_visible(layer, given.get("key_padding_mask"), given.get("attn_mask"), shape, name)
    tokens = mask(source.mask) if visible is None else visible[:, _position(source, z)]
    return _reading(source, x, z, values(plain(v)), tokens, keys, queries)


def _position(source: AttentionSource, z: Tensor) -> int:
    if not -z.shape[1] <= source.query_token < z.shape[1]:
        raise InputError(f"AttentionSource.query_token: {source.query_token}; there are {z.shape[1]} tokens")
    return source.query_token


def _reading(
    source: AttentionSource, x: Tensor, z: Tensor, values: Tensor | None, mask: Any, keys: Affine, queries: Affine
) -> Reading:
    asking = _position(source, z)
    tokens = None if mask is None else as_mask(mask.detach().cpu(), "AttentionSource.mask")
    if tokens is not None and tokens.shape != x.shape[:2]:
        raise InputError(f"AttentionSource.mask: {tuple(tokens.shape)} for keys {tuple(x.shape[:2])}")
    return Reading(plain(x), plain(z[:, asking]), values, tokens, keys, queries)
