"""What the public notebooks do, for the naive column and as the peer of the speed ratio: plain softmax, autograd."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.stack import InstanceStack


class NaiveEnsemble(EnsembleState):
    """B models trained by autograd through the ordinary softmax: right until that saturates.

    Args:
        data: the instances; their dtype is that of everything.
        plain: whether a step is lr g, g of the mean loss, in place of lr g / ||g||.
        attention_lr: learning rate.
        head_lr: learning rate.
        options: of :class:`~lightning_maxmargin.core.ensemble.EnsembleState`.

    Example:
        >>> keys = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, -1.0]]]])
        >>> model = NaiveEnsemble(Instances.stack(keys, torch.tensor([[1.0, -1.0]])))
        >>> model.run(100)
        >>> [round(x, 2) for x in (model.head[:, 0] / model.head.norm()).tolist()]
        [0.0, 1.0]
    """

    def __init__(
        self, data: Instances, plain: bool = False, attention_lr: float = 0.1, head_lr: float = 0.1, **options: Any
    ) -> None:
        super().__init__(data, **options)
        # As numbers: tensors of them would be rounded to bfloat16.
        self.plain, self.rates = plain, {"attention": attention_lr, "head": head_lr}
        # Instances first, as a notebook has them.
        self.keys, self.values, self.labels = (_turned(x) for x in (data.keys, data.values, data.labels))
        self.queries = None if data.queries is None else _turned(data.queries)

    def gradients(self) -> dict[str, Tensor]:
        """Of the mean loss with respect to what is trained, instances first."""
        w = {name: getattr(self, name).movedim(-1, 0).contiguous() for name in ("attention", "head")}
        trained = [w[name].requires_grad_() for name in self.trained]
        with torch.enable_grad():
            if self.queries is None:
                a = torch.einsum("bntd,bd->bnt", self.keys, w["attention"])
            else:
                a = torch.einsum("bntd,bde,bne->bnt", self.keys, w["attention"], self.queries)
            logits = torch.einsum("bnt,bntd,bd->bn", a.softmax(-1), self.values, w["head"])
            found = torch.autograd.grad(self.loss(logits, self.labels).mean(1).sum(), trained)
        return dict(zip(self.trained, found, strict=True))

    def step(self) -> None:  # type: ignore[override]
        """One step of all; there are no directions to return."""
        for name, g in self.gradients().items():
            size = 1.0 if self.plain else _length(g)
            setattr(self, name, getattr(self, name) - (self.rates[name] * g / size).movedim(0, -1))
        self.steps += 1


def _turned(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.ndim))).contiguous()


def _length(g: Tensor) -> Tensor:
    # Divided by the largest entry first: the square of 1e-30 is zero in float32, and the step would be 1e14 long.
    flat, tiny = g.flatten(1), torch.finfo(g.dtype).tiny
    top = flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    return (top * (flat / top).norm(dim=1, keepdim=True)).clamp_min(tiny).view(-1, *[1] * (g.ndim - 1))


def loop_rate(keys: Tensor, labels: Tensor, steps: int = 300, queries: Tensor | None = None) -> float:
    """Steps per second of the public way, written as tightly as by hand: one instance, autograd, a normalised step.

    Without a batch axis it is 1.8 times as fast as :class:`NaiveEnsemble` with one instance. The best of three.

    Args:
        keys: (n, T, d) of one instance.
        labels: (n,).
        steps: timed.
        queries: (n, dq), or None for p.
    """
    v = torch.ones(keys.shape[-1]).to(keys)

    def run() -> float:
        shape = keys.shape[-1:] if queries is None else (keys.shape[-1], queries.shape[-1])
        w = torch.zeros(shape, dtype=keys.dtype, requires_grad=True)
        start = time.process_time()
        for _ in range(steps):
            p = w if queries is None else (queries @ w.mT)[..., None]
            s = (keys @ p if queries is None else (keys @ p)[..., 0]).softmax(1)
            f = torch.einsum("nt,ntd->nd", s, keys) @ v
            torch.nn.functional.softplus(-labels * f).mean().backward()
            with torch.no_grad():
                assert w.grad is not None
                w -= 0.1 * w.grad / w.grad.norm()
            w.grad = None
        return steps / (time.process_time() - start)

    return max(run() for _ in range(3))


class Speed:
    """CPU seconds of training beside those that the public loop would take on the same instances.

    Example:
        >>> from lightning_maxmargin.reproduce.problems import draw
        >>> speed = Speed()
        >>> with speed.training(draw(2, 3, 3, 2), steps=10):
        ...     pass
        >>> speed.ratio > 1
        True
    """

    def __init__(self) -> None:
        self._ours = self._loop = 0.0

    @contextmanager
    def training(self, data: InstanceStack, steps: int) -> Iterator[None]:
        """Around the training of all of them for so many steps each."""
        start = time.process_time()
        yield
        self._ours += time.process_time() - start
        q = None if data.queries is None else data.queries[0]
        self._loop += steps * len(data) / loop_rate(data.keys[0], data.labels[0], 150, q)

    @property
    def ratio(self) -> float:
        """How many times as long the loop would take."""
        return self._loop / max(self._ours, 1e-9)
