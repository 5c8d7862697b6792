"""Closed-form gradient directions in the log domain: exact at any norm, where autograd is rounding noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_maxmargin.core import waiting
from lightning_maxmargin.core.drift import log_drift
from lightning_maxmargin.core.losses import MarginLoss
from lightning_maxmargin.core.selection import hide, select, take_token
from lightning_maxmargin.core.sequences import Sequences

#: Numbers in one block of differences of keys: 1 MiB of float32.
BLOCK_NUMBERS = 2**18
#: The same on a device, where a block costs launches: 64 MiB of float32.
DEVICE_BLOCK_NUMBERS = 2**24


class Reduce(Protocol):
    """How partial results of several processes become the whole batch's."""

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over all processes."""

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over all processes."""


class OneProcess:
    """The whole batch is here: nothing to reduce."""

    def max(self, x: Tensor) -> Tensor:
        return x

    def sum(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Directions:
    """Descent directions: -grad L = exp(log scale) * direction, of weights whose absolute values have a sum of 1.

    That sum is sum_it |dL/da_it| / 2 for the attention, the selected token's weight among them, and those of a key with
    several values taken together: so which of tied tokens is the selected one, as at a start from zeros, changes
    nothing but rounding. Where the selected tokens are the best of their sequences, it is the sum of the others'
    weights. For the head it is sum_i |l'_i|.

    Attributes:
        attention: (d,) for the shared prompt (of p), (d, dq) otherwise (of W); zeros where every weight is zero.
        head: (dv,), of v.
        log_attention: log of the attention's sum, over n; -inf where all weights are zero.
        log_head: the same of the head.
        loss: mean loss over the batch.
        log_loss: log of the mean loss, without underflow; NaN for a loss that takes negative values.
    """

    attention: Tensor
    head: Tensor
    log_attention: Tensor
    log_head: Tensor
    loss: Tensor
    log_loss: Tensor


def exact_directions(
    data: Sequences,
    scores: Tensor,
    v: Tensor,
    loss: MarginLoss,
    reduce: Reduce | None = None,
    token_values: Tensor | None = None,
) -> Directions:
    """Minus the gradient of L = mean_i l(Y_i f(X_i)), f(X) = v' X' softmax(a), its scale separate, as a logarithm.

    With c_it = Y_i (v'x_it - f_i), computed centred at the selected token alpha_i so that nothing cancels,

        -grad_p  ~  sum_{i, t != alpha_i} sign(c_it) exp(log|l'_i| + log s_it + log|c_it| - M) (k_it - k_{i,alpha_i})
        -grad_v  ~  sum_i exp(log|l'_i| - M') Y_i sum_t s_it x_it

    where M and M' are the largest exponents (over all processes). With queries, each term is multiplied by z_i'.
    Wherever keys are near, each token's pull is formed of the difference of keys, never as a difference of sums: the
    rounding of a weight of order 1 times a key would be more than every e^-gap. A token with the selected one's key
    and another value pulls nowhere: its weight, of order 1 at any norm, counts as 0 in M and in the sum of weights,
    while its s_it counts in f as ever. Near keys that are not equal count in full.
    A token of the selected one's value has c_it = Y_i (v'x_{i,alpha_i} - f_i), summed in the log domain too.
    The exponents carry an absolute error of about eps ||k|| ||p||, which p itself already has from its own rounding.

    Args:
        data: the batch; labels in {-1, 1}.
        scores: (n, T), a_it.
        v: (dv,), the linear head.
        loss: logistic, exponential or correlation.
        reduce: how several processes share the maximum and the sums; one process by default.
        token_values: (n, T), v'x_it, where they are known already.

    Returns:
        Directions in the dtype of ``scores``.

    Source: the weights are those of MMTS's gradient lemma; the log domain and the centring are this project's.

    Example:
        >>> from lightning_maxmargin.core import LOSSES, Sequences
        >>> data = Sequences(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([1.0]))
        >>> p = torch.tensor([5e3, 5e3])
        >>> exact_directions(data, data.keys @ p, torch.tensor([0.0, 1.0]), LOSSES["logistic"]).attention.tolist()
        [1.0, 1.0]
    """
    reduce = reduce or OneProcess()
    copies, mask, full = data.copies(), data.mask, None
    if copies.empty and mask is not None:
        # A sequence without a token has no softmax: it leaves the loss, as if it were not there, by weights of 0.
        full = mask.any(1)
        mask = mask | ~full[:, None]
    alpha = select(scores, mask)
    centred = hide(scores - take_token(scores, alpha)[:, None], mask)
    e = centred.exp()
    mass = e.sum(1, keepdim=True)
    log_s, s = centred - mass.log(), e / mass

    token_values = data.values @ v if token_values is None else token_values
    anchor = take_token(token_values, alpha)
    live = _live(alpha, scores, mask)
    lead = (token_values - anchor[:, None]).masked_fill(~live, 0.0)
    equal = _as_good(lead, token_values, data.values, v, alpha, live)
    drift = (s * lead).sum(1)
    m = data.labels * (anchor + drift)
    log_slope, losses = loss.log_slope(m), loss.value(m)
    log_losses = loss.log_value(m) if loss.log_value is not None else torch.full_like(m, torch.nan)
    count = m.new_full((), len(m)) if full is None else full.sum().to(m)
    if full is not None:
        log_slope, log_losses = (x.masked_fill(~full, -torch.inf) for x in (log_slope, log_losses))
        losses = losses.masked_fill(~full, 0.0)
    c = lead - drift[:, None]
    c_sign, c_log = c.sign(), c.abs().log()
    if equal is not None:
        sign, log_size = log_drift(log_s, lead, 1)
        c_sign, c_log = torch.where(equal, -sign, c_sign), torch.where(equal, log_size, c_log)

    exponent = (log_slope[:, None] + log_s + c_log).scatter(1, alpha[:, None], -torch.inf)
    if (same := copies.of(alpha)) is not None:
        exponent = exponent.masked_fill(same, -torch.inf)
    tops = reduce.max(torch.stack([_largest(exponent), _largest(log_slope)]))
    weights = data.labels[:, None] * c_sign * (exponent - _finite(tops[0])).exp()
    head_weights = (log_slope - _finite(tops[1])).exp()

    attention, head = _sums(data, weights, (head_weights * data.labels)[:, None] * s, alpha, copies.near)
    top_loss = reduce.max(_largest(log_losses)[None])[0]
    numbers = torch.stack(
        [
            # The selected token's own weight is minus the sum of the others of its sequence.
            0.5 * (copies.joined(weights).abs().sum() + weights.sum(1).abs().sum()),
            head_weights.sum(),
            losses.sum(),
            (log_losses - _finite(top_loss)).exp().sum(),
            count,
        ]
    )
    total = reduce.sum(torch.cat([attention.flatten(), head, numbers]))
    attention, head, numbers = total.split([attention.numel(), head.numel(), 5])
    size = numbers[4].clamp_min(1)
    shape = data.keys.shape[2:] if data.queries is None else (data.keys.shape[2], data.queries.shape[1])
    return Directions(
        attention=(attention / numbers[0].clamp_min(torch.finfo(s.dtype).tiny)).view(shape),
        head=head / numbers[1].clamp_min(torch.finfo(s.dtype).tiny),
        log_attention=tops[0] + numbers[0].log() - size.log(),
        log_head=tops[1] + numbers[1].log() - size.log(),
        loss=numbers[2] / size,
        log_loss=top_loss + numbers[3].log() - size.log(),
    )


def _as_good(
    lead: Tensor, token_values: Tensor, values: Tensor, v: Tensor, alpha: Tensor, live: Tensor
) -> Tensor | None:
    """Which other tokens have the selected one's value within rounding, None for none. Their lead is set to 0.

    What may be rounding is recomputed from differences of tokens. BLAS rounds the products of the last rows
    otherwise than the rest: that left 4e-16 for the copy of a token in 137 of 300 problems, which at gaps past 37 is
    more than every other token's weight.
    """
    rounding = 8 * values.shape[2] * torch.finfo(lead.dtype).eps
    doubtful = live & (lead.abs() <= rounding * token_values.abs().max()) if lead.numel() else live
    if waiting.answers_at_once(lead):
        i, t = doubtful.nonzero(as_tuple=True)
        if not len(i):
            return None
        lead[i, t] = _by_differences(values[i, t] - values[i, alpha[i]], v)
    else:
        anchor, T, d = take_token(values, alpha)[:, None], *values.shape[1:]
        block = max(1, DEVICE_BLOCK_NUMBERS // max(1, T * d))
        for rows in (slice(at, at + block) for at in range(0, len(values), block)):
            again = _by_differences(values[rows] - anchor[rows], v)
            lead[rows] = torch.where(doubtful[rows], again, lead[rows])
    return doubtful & (lead == 0)


def _by_differences(differences: Tensor, v: Tensor) -> Tensor:
    """v'(x - y) of differences (..., d), 0 within the rounding of its terms."""
    terms = differences * v
    value = terms.sum(-1)
    return value.where(value.abs() > 4 * torch.finfo(value.dtype).eps * terms.abs().sum(-1), 0.0)


def _live(alpha: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
    """True at real tokens other than the selected one."""
    live = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    return live.scatter(1, alpha[:, None], False)


def _largest(x: Tensor) -> Tensor:
    """The largest entry; -inf where a process holds no sequence at all."""
    return x.max() if x.numel() else x.new_tensor(-torch.inf)


def _finite(x: Tensor) -> Tensor:
    """0 for -inf: when every weight is zero there is nothing to scale, and -inf - -inf would be NaN."""
    return x.where(x != -torch.inf, torch.zeros_like(x))


def _sums(data: Sequences, pull: Tensor, pooling: Tensor, alpha: Tensor, near: bool) -> tuple[Tensor, Tensor]:
    """sum_it pull_it (k_it - k_i,alpha) [z_i'] and sum_it pooling_it x_it, (dv,)."""
    if not near and data.is_read_once:
        both = torch.stack([pull.scatter(1, alpha[:, None], -pull.sum(1, keepdim=True)), pooling], 1)
        # Of each sequence, then all: in one product, (2, n T) times (n T, d), it takes half as long again.
        attention, head = torch.bmm(both, data.keys).sum(0)
        return attention, head
    return (_pull_by_differences if near else _pull)(data, pull, alpha), _sum(pooling, data.values)


def _pull(data: Sequences, weights: Tensor, alpha: Tensor) -> Tensor:
    """sum_it w_it (k_it - k_i,alpha) [z_i'] as a difference of sums: for keys that are not near one another.

    Differences first would be a copy of the keys each step: 1.25 times the whole step at (300, 32, 128).
    """
    weights = weights.scatter(1, alpha[:, None], -weights.sum(1, keepdim=True))
    if data.queries is None:
        return _sum(weights, data.keys)
    return torch.bmm(weights[:, None], data.keys)[:, 0].T @ data.queries


def _pull_by_differences(data: Sequences, weights: Tensor, alpha: Tensor) -> Tensor:
    """The same of differences, each formed before it is weighted: right however near the keys are."""
    T, d = data.keys.shape[1:]
    anchor, pulls = take_token(data.keys, alpha)[:, None], []
    # In blocks, so that the differences stay in the cache and no copy of all keys is made.
    block = max(1, BLOCK_NUMBERS // max(1, T * d))
    for keys, selected, w in zip(data.keys.split(block), anchor.split(block), weights.split(block), strict=True):
        pulls.append(torch.bmm(w[:, None], keys - selected)[:, 0])
    pull = torch.cat(pulls)
    return pull.sum(0) if data.queries is None else pull.T @ data.queries


def _sum(weights: Tensor, tokens: Tensor) -> Tensor:
    """sum_it w_it x_it, (d,): a plain product, because einsum costs 10 us more on small data."""
    return weights.reshape(-1) @ tokens.reshape(-1, tokens.shape[2])
