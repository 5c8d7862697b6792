"""Attention that keeps several tokens: trained under a fixed nonlinear head and held against W_fin + R W_dir."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import direction_gap

MAX_MASKED_WEIGHT, MIN_ACTIVE_WEIGHT = 1e-6, 1e-3


@dataclass(frozen=True)
class SeveralTokens:
    """What became of each seed.

    Attributes:
        accepted: (seeds,) bool: no softmax weight between 1e-6 and 1e-3, and certified SVMs.
        between: how many seeds were rejected for a weight in between.
        unsolved: how many more for an SVM without a certified solution.
        single: how many of the accepted keep one token in every sequence, where W_fin is 0.
        combined: (seeds,), 1 - correlation of W with W_fin + R W_dir, R by least squares; NaN where rejected.
        direction: (seeds,), with W_dir alone.
        one_token: (seeds,), with the SVM of the token of largest weight.
        kept: (seeds, n, T) bool, the active sets O_i.
        W: (seeds, d, d), as trained.
    """

    accepted: Tensor
    between: int
    unsolved: int
    single: int
    combined: Tensor
    direction: Tensor
    one_token: Tensor
    kept: Tensor
    W: Tensor

    def means(self) -> dict[str, float]:
        """Mean 1 - correlation of each over the accepted seeds; NaN where there is none."""
        names = ("combined", "direction", "one_token")
        return {name: float(getattr(self, name)[self.accepted].mean()) for name in names}


def several_tokens(
    dim: int, seeds: int = 100, n: int = 3, T: int = 4, steps: int = 2001, lr: float = 0.1, seed: int = 0
) -> SeveralTokens:
    r"""Trains W of ``f(X) = 1' relu(V X' softmax(X W z))`` on random data by normalised gradient descent.

    A nonlinear head may want a mixture of tokens. Then W grows along W_dir, which separates the active set O_i from
    the masked, while W_fin sets the ratios within O_i: ``W ~ W_fin + R W_dir``, from
    :func:`~lightning_maxmargin.svm.active_set.solve_finite_part` and
    :func:`~lightning_maxmargin.svm.active_set.solve_kept_svm`.
    Tokens with weight below 1e-6 are masked, above 1e-3 active; a seed with one in between is rejected.

    V = randn(d, d) / ||V||_F; tokens and queries of unit length; labels -1 or 1; W starts uniform in +-1/sqrt(d), as a
    linear layer does; the loss is logistic. All seeds run as one batch.

    Args:
        dim: d.
        seeds: how many.
        n: sequences of each.
        T: tokens of each.
        steps: of gradient descent.
        lr: length of each.
        seed: of the first; seed + k draws instance k.

    Returns:
        SeveralTokens, in float64.

    Raises:
        InputError: a number that is not positive.

    Source: TFSVM (arXiv 2308.16898), several tokens per sequence.

    Example:
        >>> result = several_tokens(6, seeds=3, steps=400)
        >>> result.W.shape, result.kept.shape
        (torch.Size([3, 6, 6]), torch.Size([3, 3, 4]))
    """
    for name, value in (("dim", dim), ("seeds", seeds), ("n", n), ("T", T), ("steps", steps), ("lr", lr)):
        if not value > 0:
            raise InputError(f"several_tokens: {name} is {value}; expected a positive number")
    model = _Model(*(torch.stack(x) for x in zip(*(_draw(dim, n, T, seed + k) for k in range(seeds)), strict=True)))
    for _ in range(steps):
        g = model.gradient()
        model.W = model.W - lr * g / g.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None]
    s = model.attention()
    kept = s > MIN_ACTIVE_WEIGHT
    between = ((s >= MAX_MASKED_WEIGHT) & ~kept).flatten(1).any(1)
    gaps = [_gaps(model, s, kept, b) if not between[b] else None for b in range(seeds)]
    accepted = torch.tensor([gap is not None for gap in gaps])
    nan = (float("nan"),) * 3
    combined, direction, one = torch.tensor([gap or nan for gap in gaps], dtype=torch.float64).T
    return SeveralTokens(
        accepted=accepted,
        between=int(between.sum()),
        unsolved=int((~accepted & ~between).sum()),
        single=int((accepted & (kept.sum(2) == 1).all(1)).sum()),
        combined=combined,
        direction=direction,
        one_token=one,
        kept=kept,
        W=model.W,
    )


@dataclass
class _Model:
    """B models, each with its own data and head: X (B, n, T, d), z (B, n, d), labels (B, n), V and W (B, d, d)."""

    X: Tensor
    z: Tensor
    labels: Tensor
    V: Tensor
    W: Tensor

    def _centred(self) -> tuple[Tensor, Tensor]:
        """Scores less the largest, and its token, (B, n, T) and (B, n)."""
        a = torch.einsum("bntd,bnd->bnt", self.X, self.z @ self.W.mT)
        top, alpha = a.max(2)
        return a - top[..., None], alpha

    def attention(self) -> Tensor:
        """s, (B, n, T)."""
        return self._centred()[0].softmax(2)

    def gradient(self) -> Tensor:
        """d/dW of the mean loss: sum_it l'_i s_it (c_it - sum_k s_ik c_ik) x_it z_i', c centred at the top token."""
        a, alpha = self._centred()
        s = a.softmax(2)
        anchor = self.X.gather(2, alpha[..., None, None].expand(-1, -1, 1, self.X.shape[3]))
        lead = self.X - anchor
        pooled = anchor[:, :, 0] + (s[..., None] * lead).sum(2)
        hidden = pooled @ self.V.mT
        slope = (hidden > 0).to(hidden) @ self.V  # of 1' relu(V x) at the pooled token
        m = self.labels * hidden.relu().sum(2)
        c = self.labels[..., None] * torch.einsum("bntd,bnd->bnt", lead, slope)
        w = s * (c - (s * c).sum(2, keepdim=True)) * -torch.sigmoid(-m)[..., None]
        return torch.einsum("bnd,bne->bde", torch.einsum("bnt,bntd->bnd", w, self.X), self.z) / self.labels.shape[1]


def _draw(d: int, n: int, T: int, seed: int) -> tuple[Tensor, ...]:
    """X, z, labels, V and W(0) of one instance."""
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=g, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    X, z = unit(n, T, d), unit(n, d)
    labels = 2.0 * torch.randint(2, (n,), generator=g).double() - 1
    V = torch.randn(d, d, generator=g, dtype=torch.float64)
    W = (2 * torch.rand(d, d, generator=g, dtype=torch.float64) - 1) / d**0.5
    return X, z, labels, V / V.norm(), W


def _gaps(model: _Model, s: Tensor, kept: Tensor, b: int) -> tuple[float, float, float] | None:
    """1 - correlation with W_fin + R W_dir, W_dir and the single-token SVM; None where one is not certified."""
    from lightning_maxmargin.svm import solve_att_svm
    from lightning_maxmargin.svm.active_set import solve_finite_part, solve_kept_svm

    X, z, W = model.X[b], model.z[b], model.W[b]
    far = solve_kept_svm(X, kept[b], queries=z)
    near = solve_finite_part(X, kept[b], s[b], queries=z)
    one = solve_att_svm(X, s[b].argmax(1), queries=z)
    if any(x.status != "certified" for x in (far, near, one)) or not bool(far.direction.any()):
        return None
    D, F = far.direction, near.direction
    R = ((W - F) * D).sum() / D.square().sum()
    gaps = [direction_gap(W, target) for target in (F + R * D, D, one.direction)]
    combined, direction, single = (float("nan") if gap is None else gap for gap in gaps)
    return combined, direction, single
