"""The loss over its reference, log(L(p) - L(alpha)): what a path can still minimise where softmax has saturated and L
itself is constant to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import MarginLoss, Sequences, take_token
from lightning_maxmargin.core.selection import hide

#: psi: (m, dv) pooled tokens to (m,) outputs.
Head = Callable[[Tensor], Tensor]
# Gauss-Legendre on (0, 1), exact for polynomials of degree 15.
_x, _w = np.polynomial.legendre.leggauss(8)
NODES, WEIGHTS = torch.from_numpy((_x + 1) / 2), torch.from_numpy(_w / 2)
# Up to this move of a margin the quadrature of the logistic slope is exact to 1e-13; past it a difference of logs is.
MAX_QUADRATURE_MOVE = 2.0
# Added to minus log|E| where E < 0, so that every loss below the reference counts as less than any above it.
BELOW_REFERENCE = -1e5


@dataclass(frozen=True)
class Excess:
    r"""E(p) = L(p) - L(alpha) for a fixed head, L(alpha) the loss of attention that selects alpha entirely.

    Pooling moves the margin of the selected token, m_i = Y_i psi(x_i,alpha), down by
    ``u_i = -sum_t s_it c_it``, c_it = Y_i psi'(x_it - x_i,alpha), and the loss of the sequence up by
    ``u_i int_0^1 |l'(m_i - tau u_i)| d tau``. For a linear head psi' is v, else the mean of psi' on the way from
    x_alpha to the pooled token. No two nearly equal numbers are subtracted, so E is accurate at any ||p||.

    Attributes:
        data: the sequences, in float64.
        head: v (dv,) or psi.
        loss: logistic, exponential or correlation.
        selected: (n,), alpha.
    """

    data: Sequences
    head: Tensor | Head
    loss: MarginLoss
    selected: Tensor

    def signed_log(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """sign(E) and log|E|, of p (d,) or W (d, dq).

        Example:
            >>> from lightning_maxmargin.core import LOSSES
            >>> data = Sequences(torch.tensor([[[0.0], [1.0]]]).double(), torch.tensor([1.0]).double())
            >>> excess = Excess(data, torch.ones(1).double(), LOSSES["correlation"], torch.tensor([1]))
            >>> [x.item() for x in excess.signed_log(torch.tensor([1e5]).double())]  # E = 1 / (1 + e^p)
            [1.0, -100000.0]
        """
        log_s = hide(attention_scores(self.data, attention), self.data.mask).log_softmax(1)
        others = log_s.scatter(1, self.selected[:, None], -torch.inf)
        # Without the largest of them exp would underflow at ||p|| of about 745.
        top = _finite(others.detach().amax(1))
        sign, log_u = _log_abs(-((others - top[:, None]).exp() * self._gaps(log_s)).sum(1))
        log_e = self._log_rise(sign, log_u + top)
        most = _finite(log_e.detach().amax())
        sign, log_total = _log_abs((sign * (log_e - most).exp()).mean())
        return sign, log_total + most

    def __call__(self, attention: Tensor) -> Tensor:
        """An increasing function of L: log E where E > 0, BELOW_REFERENCE - log|E| where E < 0."""
        sign, log_e = self.signed_log(attention)
        return BELOW_REFERENCE - log_e if sign < 0 else log_e

    def _gaps(self, log_s: Tensor) -> Tensor:
        """c_it, (n, T)."""
        values, Y = self.data.values, self.data.labels
        anchor = take_token(values, self.selected)
        lead = values - anchor[:, None]
        if isinstance(self.head, Tensor):
            return Y[:, None] * (lead @ self.head)
        way = torch.einsum("nt,ntd->nd", log_s.exp(), lead)
        at = anchor + NODES[:, None, None] * way
        if not at.requires_grad:
            at = at.requires_grad_()
        psi = self.head(at.flatten(0, 1)).sum()
        (slope,) = torch.autograd.grad(psi, at, create_graph=True)
        return Y[:, None] * torch.einsum("k,knd,ntd->nt", WEIGHTS, slope, lead)

    def _log_rise(self, sign: Tensor, log_u: Tensor) -> Tensor:
        """log|l(m - u) - l(m)|, (n,)."""
        m = self.data.labels * apply_head(self.head, take_token(self.data.values, self.selected))
        u = sign * log_u.exp()
        small = (
            (u.abs() <= MAX_QUADRATURE_MOVE)
            if self.loss.log_value is not None
            else torch.ones_like(u, dtype=torch.bool)
        )
        near = u if self.loss.log_value is None else u.where(small, torch.zeros_like(u))
        slopes = self.loss.log_slope(m - NODES[:, None] * near)
        rise = log_u + (WEIGHTS.log()[:, None] + slopes).logsumexp(0)
        if self.loss.log_value is None or bool(small.all()):
            return rise
        far = u.where(~small, torch.full_like(u, MAX_QUADRATURE_MOVE))
        low, high = self.loss.log_value(m), self.loss.log_value(m - far)
        difference = (-torch.expm1(-(high - low).abs())).log() + torch.maximum(high, low)
        return rise.where(small, difference)


def attention_scores(data: Sequences, attention: Tensor) -> Tensor:
    """a_it (n, T) of p (d,), or where the data have queries of W, (d, dq) or flat."""
    if data.queries is None:
        return data.keys @ attention
    W = attention.reshape(data.keys.shape[2], data.queries.shape[1])
    return torch.einsum("ntd,nd->nt", data.keys, data.queries @ W.T)


def apply_head(head: Tensor | Head, tokens: Tensor) -> Tensor:
    """v'x or psi(x), (m,), of tokens (m, dv)."""
    return tokens @ head if isinstance(head, Tensor) else head(tokens)


def best_tokens(data: Sequences, head: Tensor | Head) -> Tensor:
    """argmax_t Y_i psi(x_it), (n,): attention that selects these has the smallest loss of all that select one each."""
    n, T, dv = data.values.shape
    gamma = data.labels[:, None] * apply_head(head, data.values.reshape(n * T, dv)).detach().view(n, T)
    return hide(gamma, data.mask).argmax(1)


def pooled_tokens(data: Sequences, attention: Tensor) -> Tensor:
    """sum_t s_it x_it, (n, dv)."""
    s = hide(attention_scores(data, attention), data.mask).softmax(1)
    return torch.einsum("nt,ntd->nd", s, data.values)


def margins(data: Sequences, head: Tensor | Head, attention: Tensor) -> Tensor:
    """Y_i psi(sum_t s_it x_it), (n,)."""
    return data.labels * apply_head(head, pooled_tokens(data, attention))


def log_mean_loss(loss: MarginLoss, m: Tensor) -> Tensor:
    """log L of margins (n,); L itself for a loss that takes negative values."""
    if loss.log_value is None:
        return loss.value(m).mean()
    return loss.log_value(m).logsumexp(0) - float(np.log(len(m)))


def _log_abs(x: Tensor) -> tuple[Tensor, Tensor]:
    """sign(x) and log|x|; -inf with a zero derivative at 0."""
    zero = x == 0
    return x.detach().sign(), x.masked_fill(zero, 1.0).abs().log().masked_fill(zero, -torch.inf)


def _finite(x: Tensor) -> Tensor:
    return x.masked_fill(x == -torch.inf, 0.0)
