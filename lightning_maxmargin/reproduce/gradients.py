"""Gradients three ways at one point: by autograd in any dtype, exactly in the log domain, and in 50 decimal digits."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.reproduce.problems import Problems


def by_autograd(problems: Problems, attention: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
    """-grad of the attention at (B, ...) by autograd in this dtype, as float64."""
    return -problems.naive(attention, head, dtype, train="attention").gradients()["attention"].double()


def in_log_domain(problems: Problems, attention: Tensor, head: Tensor) -> Tensor:
    """The exact direction at (B, ...), up to its length."""
    return problems.exact(attention, head, train="attention").step().attention.movedim(-1, 0)


def in_decimals(problems: Problems, p: Tensor, v: Tensor, digits: int = 50) -> Tensor:
    """The direction of the first instance at p (d,), v (dv,) in decimal digits, scaled to largest entry 1."""
    with localcontext(Context(prec=digits, Emin=-(10**9), Emax=10**9)):
        keys, values = _decimals(problems.keys[0]), _decimals(problems.values[0])
        q, u, labels = _decimals(p), _decimals(v), _decimals(problems.labels[0])
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
