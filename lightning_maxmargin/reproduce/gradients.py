"""Gradients three ways at one point: by autograd in any dtype, exactly in the log domain, and in 50 decimal digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.stack import InstanceStack
from lightning_maxmargin.data.random import RandomData
from lightning_maxmargin.reproduce.naive import NaiveEnsemble
from lightning_maxmargin.reproduce.paths import Setting


@dataclass(frozen=True)
class Started(InstanceStack):
    """B instances in float64 with their starts. ``train`` is ``both`` or ``attention``."""

    attention: Tensor = field(kw_only=True)
    head: Tensor = field(kw_only=True)
    train: Any = field(kw_only=True)

    @staticmethod
    def of(example: str) -> Started:
        """A worked example: the joint ones train p and v from (0, -1) and (-1, 0), the others attention from 0."""
        s = Setting.of(example)
        joint = s.head is None
        shape = (s.keys.shape[-1],) if s.queries is None else (s.keys.shape[-1], s.queries.shape[-1])
        p0 = torch.tensor([0.0, -1.0]) if joint else torch.zeros(shape)
        head = torch.tensor([-1.0, 0.0]) if s.head is None else s.head
        queries = None if s.queries is None else s.queries[None]
        start: Any = {"attention": p0.double()[None], "head": head.double()[None]}
        start["train"] = "both" if joint else "attention"
        return Started(s.keys[None], s.labels[None], s.values[None], queries, **start)

    @staticmethod
    def random(n: int, T: int, d: int, seeds: Sequence[int]) -> Started:
        """Unit v, X and Z, labels by sign, W from 0, v kept; one instance per seed."""
        made = [RandomData(n, T, d, seed=s, queries=True, labels="sign") for s in seeds]
        data = [m.splits["train"] for m in made]
        keys, labels, queries = (torch.stack([getattr(s, k) for s in data]) for k in ("keys", "labels", "queries"))
        head = torch.stack([m.head for m in made if m.head is not None])
        zero = keys.new_zeros(len(seeds), d, d)
        return Started(keys, labels.double(), keys, queries, attention=zero, head=head, train="attention")

    def exact(self, lr: float = 0.1, dtype: torch.dtype = torch.float64) -> EnsembleState:
        """Trained by exact directions."""
        start = self.attention.movedim(0, -1), self.head.movedim(0, -1)
        return EnsembleState(self.batch(dtype), *start, train=self.train, attention_lr=lr, head_lr=lr)

    def naive(self, dtype: torch.dtype, lr: float = 0.1) -> NaiveEnsemble:
        """Trained by autograd in this dtype."""
        keys, labels, values, queries = (
            None if x is None else x.to(dtype) for x in (self.keys, self.labels, self.values, self.queries)
        )
        assert keys is not None
        assert labels is not None
        return NaiveEnsemble(keys, labels, values, queries, self.attention, self.head, self.train, lr, lr)

    def autograd(self, attention: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
        """-grad of the attention at (B, ...) by autograd in this dtype, as float64."""
        model = self.naive(dtype)
        model.train, model.update, model.rates = "attention", "plain", {"attention": 1.0}
        model.attention, model.head = torch.zeros_like(attention, dtype=dtype), head.to(dtype)
        # The gradient alone: a step from w would round the sum.
        w = attention.to(dtype).requires_grad_()
        s = model.scores(w).softmax(-1)
        f = torch.einsum("bnt,bntd,bd->bn", s, model.values, model.head)
        return -torch.autograd.grad(model.loss(f, model.labels).mean(1).sum(), w)[0].double()

    def log_domain(self, attention: Tensor, head: Tensor) -> Tensor:
        """The exact direction at (B, ...), up to its length."""
        state = self.exact()
        state.attention, state.head = attention.movedim(0, -1).clone(), head.movedim(0, -1).clone()
        return state.step().attention.movedim(-1, 0)

    def decimal(self, p: Tensor, v: Tensor, digits: int = 50) -> Tensor:
        """The direction of the first instance at p (d,), v (dv,) in decimal digits, scaled to largest entry 1."""
        with localcontext(Context(prec=digits, Emin=-(10**9), Emax=10**9)):
            keys, values = _decimals(self.keys[0]), _decimals(self.values[0])
            q, u, labels = _decimals(p), _decimals(v), _decimals(self.labels[0])
            total = [Decimal(0)] * len(q)
            for k, x, y in zip(keys, values, labels, strict=True):
                score, gamma = [_dot(t, q) for t in k], [y * _dot(t, u) for t in x]
                e = [(a - max(score)).exp() for a in score]
                s = [a / sum(e) for a in e]
                # gamma_t - sum_k s_k gamma_k without cancellation.
                c = [sum(b * (g - h) for b, h in zip(s, gamma, strict=True)) for g in gamma]
                m = _dot(s, gamma)
                slope = 1 / (1 + m.exp())
                for j in range(len(total)):
                    total[j] += slope * sum(b * w * t[j] for b, w, t in zip(s, c, k, strict=True))
            top = max(abs(t) for t in total)
            return torch.tensor([float(t / top) for t in total], dtype=torch.float64)


def _decimals(x: Tensor) -> Any:
    return Decimal(x.item()) if x.ndim == 0 else [_decimals(y) for y in x]


def _dot(a: list[Decimal], b: list[Decimal]) -> Decimal:
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))
