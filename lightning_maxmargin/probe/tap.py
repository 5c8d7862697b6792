"""Sees every attention that a forward pass computes, whoever wrote it: what softmax was given, and what made it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_maxmargin.probe.capture import quietly

#: Names of torch's functions and of tensors' methods that multiply queries with keys.
PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum"})
#: Products that a module keeps until its softmax: DeBERTa has four.
MOST_PRODUCTS = 8


@dataclass
class Projection:
    """A submodule that mapped tokens to tokens.

    Attributes:
        name: as in ``named_modules()``.
        given: (n, T, d), or with a head axis.
        output: (n, T, out), likewise.
        first: of the output's first sequence, as it was: code after it may write into the output.
    """

    name: str
    module: nn.Module
    given: Tensor
    output: Tensor
    first: Tensor


@dataclass
class Frame:
    """A module that is running: what its own submodules have returned, and the products it has computed."""

    name: str
    module: nn.Module
    projections: list[Projection] = field(default_factory=list)
    products: list[tuple[Tensor, Tensor, torch.Size]] = field(default_factory=list)
    attended: bool = False


@dataclass
class Call:
    """One attention, when it is computed.

    Attributes:
        frames: the modules that are running, the innermost last.
        queries: (n, H, Tq, dh) or (n H, Tq, dh), as they are multiplied.
        keys: (n, Hkv, T, dh) or (n H, T, dh).
        scores: what softmax was given, (n, H, Tq, T); None where ``scaled_dot_product_attention`` computes them.
        arguments: of that function, or of ``multi_head_attention_forward``.
        function: which of the three: softmax, scaled_dot_product_attention, multi_head_attention_forward.
    """

    function: str
    frames: list[Frame]
    queries: Tensor | None = None
    keys: Tensor | None = None
    scores: Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


class Tap(TorchFunctionMode):
    """Calls ``on_attention`` at every attention of a pass.

    Args:
        root: whose names are used.
        on_attention: is given each :class:`Call`, within the pass.
    """

    def __init__(self, root: nn.Module, on_attention: Callable[[Call], None]) -> None:
        super().__init__()
        self.root, self.on_attention = root, on_attention
        self.frames: list[Frame] = []

    def run(self, forward: Callable[[], Any]) -> None:
        """Runs ``forward`` in evaluation mode, without gradients; modes, hooks and random states are restored."""
        with quietly(self.root), ExitStack() as hooks:
            # A compiled module runs as it was written: compiled code calls neither hooks nor torch's functions.
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
            for name, module in self.root.named_modules():
                hooks.callback(module.register_forward_pre_hook(self._enters(name)).remove)
                leaves = module.register_forward_hook(self._leaves, with_kwargs=True, always_call=True)
                hooks.callback(leaves.remove)
            # A training step may compute attention itself, outside of any module's forward.
            self.frames = [Frame("", self.root)]
            with self:
                forward()

    def _enters(self, name: str) -> Callable[..., None]:
        return lambda module, args: self.frames.append(Frame(name, module))

    def _leaves(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        while self.frames:
            frame = self.frames.pop()
            if self.frames:
                self.frames[-1].attended |= frame.attended
            if frame.module is module:
                break
        else:
            return
        given = next((x for x in [*args, *kwargs.values()] if isinstance(x, Tensor)), None)
        # A module with attention inside projects nothing; its inputs would be held for as long as the model runs.
        if self.frames and not frame.attended and _is_of_tokens(given) and _is_of_tokens(output):
            assert given is not None
            first = output[:1].detach().clone()
            self.frames[-1].projections.append(Projection(frame.name, module, given, output, first))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.frames and name == "softmax":
            self._softmax(*args, **kwargs)
        elif self.frames and name == "scaled_dot_product_attention":
            self._attends(_scaled_dot_product(*args, **kwargs))
        elif self.frames and name == "multi_head_attention_forward":
            signature = inspect.signature(nn.functional.multi_head_attention_forward)
            self._attends(Call(name, [], arguments=signature.bind(*args, **kwargs).arguments))
        output = func(*args, **kwargs)
        if self.frames and name in PRODUCTS and isinstance(output, Tensor) and output.ndim > 2:
            factors = _factors(name, args, kwargs)
            if factors is not None:
                products = self.frames[-1].products
                products.append((*factors, output.shape))
                del products[:-MOST_PRODUCTS]
        return output

    def _attends(self, call: Call) -> None:
        call.frames = list(self.frames)
        for frame in call.frames:
            frame.attended = True
        self.on_attention(call)
        call.frames[-1].products.clear()

    def _softmax(self, scores: Any = None, *args: Any, **kwargs: Any) -> None:
        """Only that of a product is an attention: a router's or a classifier's is not."""
        scores = kwargs.get("input") if scores is None else scores
        dim = kwargs.get("dim", args[0] if args else None)
        # Over the queries, as of slots, it is no attention of a query to tokens.
        if not isinstance(scores, Tensor) or scores.ndim not in (3, 4) or dim not in (-1, scores.ndim - 1):
            return
        for frame in reversed(self.frames):
            for queries, keys, shape in reversed(frame.products):
                if shape.numel() == scores.numel() and shape[-2:] == scores.shape[-2:]:
                    self._attends(Call("softmax", [], queries, keys, scores))
                    frame.products.clear()
                    return


def _is_of_tokens(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim in (3, 4) and x.is_floating_point()


def _scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    arguments = {"value": value, "attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    return Call("scaled_dot_product_attention", [], query, key, arguments=arguments)


def _factors(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Queries (..., Tq, dh) and keys (..., T, dh) of a product; None where it is none of two stacks of matrices."""
    given = [*args, *kwargs.values()]
    if name == "einsum":
        return _factors_of_einsum(given)
    tensors = [x for x in given if isinstance(x, Tensor)]
    tensors = tensors[1:] if name == "baddbmm" else tensors
    if len(tensors) != 2 or tensors[0].ndim < 3 or tensors[1].ndim < 3:
        return None
    left, right = reversed(tensors) if name == "__rmatmul__" else tensors
    return left, right.mT


def _factors_of_einsum(given: list[Any]) -> tuple[Tensor, Tensor] | None:
    """Of an equation whose last two letters are the queries' and the keys'."""
    tensors = [x for x in given[1:] if isinstance(x, Tensor)]
    if not isinstance(given[0], str) or len(tensors) != 2 or "->" not in given[0] or "." in given[0]:
        return None
    left, right, out = given[0].replace(" ", "").replace("->", ",").split(",")
    summed = [letter for letter in left if letter in right and letter not in out]
    rows, columns = out[-2:-1], out[-1:]
    if len(summed) != 1 or rows not in left or columns not in right or columns in left or rows in right:
        return None
    orders = [[side.find(x) for x in [*out[:-2], last, summed[0]]] for side, last in ((left, rows), (right, columns))]
    if any(min(order) < 0 or len(order) != x.ndim for order, x in zip(orders, tensors, strict=True)):
        return None
    return tensors[0].permute(orders[0]), tensors[1].permute(orders[1])
