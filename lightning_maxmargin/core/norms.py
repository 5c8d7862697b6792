"""Directions of steepest descent by norm: unit length, mirror map and polar factor, at any scale of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled(g: Tensor, instances: bool = False) -> Tensor:
    """g divided by its largest absolute entry, so that no power of it underflows: 1e-30 squared is zero in float32.

    Args:
        g: of any shape; zeros stay zeros.
        instances: whether the last axis is one of instances, each with its own largest entry.

    Example:
        >>> scaled(torch.tensor([2e-30, -4e-30])).tolist()
        [0.5, -1.0]
    """
    top = g.abs().flatten(0, -2).amax(0) if instances else g.abs().max()
    return g / torch.where(top > 0, top, torch.ones_like(top))


def unit(g: Tensor, order: float = 2.0, instances: bool = False) -> Tensor:
    """g / ||g||, in the l_order norm of its entries (Frobenius for a matrix), at any scale of g.

    Args:
        g: of any shape; zeros stay zeros.
        order: of the norm, at least 1.
        instances: whether the last axis is one of instances, each with its own length.

    Example:
        >>> [round(x, 4) for x in unit(torch.tensor([3e-30, 4e-30])).tolist()]
        [0.6, 0.8]
    """
    g = scaled(g, instances)
    length = torch.linalg.vector_norm(g.flatten(0, -2) if instances else g, order, dim=0 if instances else None)
    # At least 1 unless g is zero, because its largest entry is 1 now.
    return g / length.clamp_min(torch.finfo(g.dtype).tiny)


def mirror(w: Tensor, p: float) -> Tensor:
    """The gradient of ||w||_p^p / p: sign(w) |w|^(p-1). Its inverse is the same map with q = p / (p - 1).

    Args:
        w: of any shape.
        p: above 1.

    Example:
        >>> y = mirror(torch.tensor([-2.0, 0.0, 3.0]), 3.0)
        >>> y.tolist(), [round(x, 4) for x in mirror(y, 1.5).tolist()]
        ([-4.0, 0.0, 9.0], [-2.0, 0.0, 3.0])
    """
    # Exactly linear, without a power's rounding.
    return w if p == 2 else w.sign() * w.abs().pow(p - 1)


def polar_factor(G: Tensor) -> Tensor:
    """U V' of the thin singular value decomposition of G, over the singular values above rounding.

    Args:
        G: (m, n), of any rank and scale; zeros give zeros.

    Example:
        >>> polar_factor(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    U, s, Vh = torch.linalg.svd(scaled(G), full_matrices=False)
    # The backward error of an SVD: smaller singular values, and their vectors, are rounding.
    above = s > s[0] * max(G.shape) * torch.finfo(G.dtype).eps
    return (U * above) @ Vh


def newton_schulz(G: Tensor, steps: int = 20) -> Tensor:
    """X <- (15 X - 10 X X'X + 3 X X'X X'X) / 8 from G / ||G||_F: singular values in (0, 1] go to 1, to third order.

    A small one grows by 15/8 a step: after ``steps`` those above (8/15)^steps ||G||_F are at 1, those far below are as
    good as zero. 20 steps reach 3e-6 of ||G||_F; in float32 more would raise rounding (6e-8) to a direction.

    Args:
        G: (m, n), of any scale; zeros give zeros.
        steps: at least 1.

    Source: Higham, "Functions of matrices" (2008), the Pade family for the polar factor; unlike Muon's five
    quintic steps this one converges.

    Example:
        >>> newton_schulz(torch.tensor([[0.0, -3.0], [0.01, 0.0]])).round(decimals=4).abs().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    X = unit(G)
    wide = X.shape[0] < X.shape[1]
    X = X.mT if wide else X
    for _ in range(steps):
        A = X.mT @ X
        X = (15 * X - 10 * X @ A + 3 * X @ (A @ A)) / 8
    return X.mT if wide else X
