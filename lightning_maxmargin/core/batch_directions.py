"""Exact directions of many small instances at once, in the layout of ``lightning_maxmargin.core.batch``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.core import waiting
from lightning_maxmargin.core.batch import Instances, sum_of_products
from lightning_maxmargin.core.drift import log_drift
from lightning_maxmargin.core.losses import MarginLoss
from lightning_maxmargin.errors import InputError

LOG2_E = math.log2(math.e)
# Instances whose weights sum to less are recomputed: underflow drops 2^-115 of the largest possible weight.
MIN_WEIGHT_SUM = 2.0**-40


@dataclass(frozen=True)
class InstanceDirections:
    """Descent directions of every instance, each scaled as in core/exact.py (0 where all weights are 0).

    Attributes:
        attention: (d, B) of p or (d, dq, B) of W.
        head: (dv, B) of v; None where it was not wanted.
        log_attention: (B,), log of the sum before scaling, up to the 1/n of the mean; see core/exact.py.
        margins: (n, B), Y f(X).
        labels: (n, B).
        loss_function: of the margins.
    """

    attention: Tensor
    head: Tensor | None
    log_attention: Tensor
    margins: Tensor
    labels: Tensor
    loss_function: MarginLoss

    @property
    def loss(self) -> Tensor:
        """(B,), mean loss; worked out when it is read."""
        live = self.labels != 0
        return (self.loss_function.value(self.margins) * live).sum(0) / live.sum(0).clamp_min(1)

    def of_log_loss(self) -> tuple[Tensor, Tensor | None]:
        """Minus the gradients of log L with respect to attention and head, at their size.

        Raises:
            InputError: the loss takes negative values, or is another in each instance.
        """
        if self.loss_function.log_value is None:
            raise InputError(f"loss {self.loss_function.name} has no logarithm; take a rule that needs no size")
        live = self.labels != 0
        log_loss = self.loss_function.log_value(self.margins).where(live, -torch.inf).logsumexp(0)
        attention = self.attention * (self.log_attention - log_loss).exp()
        if self.head is None:
            return attention, None
        log_head = self.loss_function.log_slope(self.margins).where(live, -torch.inf).logsumexp(0)
        return attention, self.head * (log_head - log_loss).exp()


def instance_directions(
    data: Instances, a: Tensor, gamma: Tensor, loss: MarginLoss, head: bool = True
) -> InstanceDirections:
    """What :func:`~lightning_maxmargin.core.exact.exact_directions` computes, for every instance at once.

    Args:
        data: the instances.
        a: (T, n, B), attention scores.
        gamma: (T, n, B), token scores Y_i v'x_it.
        loss: logistic, exponential or correlation.
        head: whether v's direction is wanted.

    Example:
        >>> from lightning_maxmargin.core import LOSSES
        >>> from lightning_maxmargin.core.batch import scores, token_scores
        >>> data = Instances.stack(torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]]), torch.ones(1, 1))
        >>> a, gamma = scores(data, torch.full((2, 1), 5e3)), token_scores(data, torch.tensor([[0.0], [1.0]]))
        >>> instance_directions(data, a, gamma, LOSSES["logistic"]).attention.flatten().tolist()
        [1.0, 1.0]
    """
    # Weights and slopes are powers of 2: for 48,000 numbers exp2 takes 6 us, exp 28.
    if data.mask is not None:
        a = a.masked_fill(~data.mask, -torch.inf)
    shifted = (a - a.amax(0)).mul_(LOG2_E)
    chosen = _chosen(shifted)
    e = _exp2(shifted)
    total = e.sum(0)
    anchor = (gamma * chosen).sum(0)
    # Centred at the selected token, so that its own entry is exactly 0 and nothing cancels.
    lead = gamma - anchor
    if data.mask is not None:
        lead = lead.masked_fill(~data.mask, 0.0)
    drift = (e * lead).sum(0).div_(total)
    m = drift + anchor
    log_slope = loss.log_slope(m) * LOG2_E
    if data.mask is not None:
        log_slope = log_slope.masked_fill(data.labels == 0, -torch.inf)
    # The selected token's own weight is left out here: it takes minus the sum of the others below. Finite, because
    # infinity times 0 is no number.
    far = torch.finfo(a.dtype).max / 8
    exponent, c = shifted.sub(chosen, alpha=far).add_(log_slope - total.log2()), lead - drift
    first, near = data.copies
    zeros = data.mask is not None or first is not None
    if first is not None:
        # The selected one's key with another value pulls nowhere, whatever its weight.
        exponent = exponent.masked_fill(first == (first * chosen).sum(0), -torch.inf)
    w, size, largest = _weights(exponent, c, zeros, first)
    parts = (exponent, c, shifted, total, lead, anchor)
    if not waiting.answers_at_once(size):
        again = _weights(*_logarithms(*parts), zeros, first)
        enough = size > MIN_WEIGHT_SUM
        w, size, largest = (torch.where(enough, x, y) for x, y in zip((w, size, largest), again, strict=True))
    elif not float(size.amin()) > MIN_WEIGHT_SUM:
        at = (~(size > MIN_WEIGHT_SUM)).nonzero()[:, 0]
        exponent, c = _logarithms(*(x.index_select(-1, at) for x in parts))
        w[..., at], size[at], largest[at] = _weights(exponent, c, zeros, None if first is None else first[..., at])
    pull = _pull_by_differences(data, w, chosen) if near else _pull(data, w.addcmul_(chosen, w.sum(0), value=-1))
    return InstanceDirections(
        attention=pull.div_(size.clamp_min(torch.finfo(w.dtype).tiny)),
        head=_head(data, e / total, log_slope) if head else None,
        log_attention=(largest + size.log2()) / LOG2_E,
        margins=m,
        labels=data.labels,
        loss_function=loss,
    )


def _logarithms(
    exponent: Tensor, c: Tensor, shifted: Tensor, total: Tensor, lead: Tensor, anchor: Tensor
) -> tuple[Tensor, Tensor]:
    """Exponents with log|c|, and the signs: what tokens as good as the selected one cannot hide by weights of 0."""
    # As good within the rounding of two scores.
    equal = lead.abs() <= 8 * torch.finfo(lead.dtype).eps * anchor.abs()
    lead = lead.masked_fill(equal, 0.0)
    sign, log_size = log_drift((shifted - total.log2()) / LOG2_E, lead, 0)
    return exponent + torch.where(equal, log_size * LOG2_E, c.abs().log2()), torch.where(equal, -sign, c.sign())


def _weights(exponent: Tensor, c: Tensor, zero: bool, first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """2^exponent c over 2^largest, half the sum of absolute weights, and the largest exponent of each instance.

    The selected token's weight, minus the sum of the others of its sequence, is one of those summed; those of a key
    with several values are added up before.
    """
    largest = exponent.amax((0, 1))
    largest = largest.where(largest != -torch.inf, torch.zeros_like(largest))
    # 2^-115 of the largest weight is as good as 0, but for padding, whose tokens may be anything.
    w = _exp2(exponent - largest, zero).mul_(c)
    joined = w if first is None else torch.zeros_like(w).scatter_add_(0, first.long(), w)
    return w, joined.abs().sum(0).add_(w.sum(0).abs_()).sum(0).mul_(0.5), largest


def _exp2(x: Tensor, zero: bool = True) -> Tensor:
    """2^x for x <= 0; where it is near underflow 0, or without ``zero`` the smallest that is not.

    Not by exp2 itself, which takes 4 times as long where its results are denormal.
    """
    floor = -1000.0 if x.dtype == torch.float64 else -115.0
    e = x.clamp_min(floor).exp2_()
    return torch.nn.functional.threshold(e, 1.001 * 2.0**floor, 0.0, inplace=True) if zero else e


def _chosen(shifted: Tensor) -> Tensor:
    """1 at the first largest token of each sequence, 0 elsewhere: a product with booleans takes 6 times as long."""
    if waiting.answers_at_once(shifted):
        chosen = shifted.sign().add_(1)
        # A tie is rare but for a zero start.
        if float(chosen.sum(0).amax()) <= 1:
            return chosen
    return torch.zeros_like(shifted).scatter_(0, shifted.argmax(0, keepdim=True), 1.0)


def _pull(data: Instances, w: Tensor) -> Tensor:
    """sum_it w_it k_it [z_i'] of every instance."""
    # One token, then one sequence at a time: no product of the size of the keys.
    return _over_sequences(data, sum_of_products(data.keys.unbind(1), w.unbind()))


def _pull_by_differences(data: Instances, w: Tensor, chosen: Tensor) -> Tensor:
    """sum_it w_it (k_it - k_i,alpha) [z_i'], differences first: for keys that are near, see ``core/exact.py``."""
    tokens = data.keys.unbind(1)
    anchor = sum_of_products(tokens, chosen.unbind())
    return _over_sequences(data, sum_of_products((k - anchor for k in tokens), w.unbind()))


def _over_sequences(data: Instances, per_sequence: Tensor) -> Tensor:
    """sum_i of (d, n, B) [times z_i']."""
    if data.queries is None:
        return per_sequence.sum(1)
    return sum_of_products(per_sequence[:, None].unbind(2), data.queries[None].unbind(2))


def _head(data: Instances, s: Tensor, log_slope: Tensor) -> Tensor:
    """sum_i |l'_i| Y_i sum_t s_it x_it of every instance, weights summing to 1."""
    u = (log_slope - log_slope.amax(0)).exp2_()
    u = u / u.sum(0) * data.labels
    return (data.values * (s * u)).sum((1, 2))
