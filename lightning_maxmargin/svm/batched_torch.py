"""Many small problems at once on their device: one interior point for all instances, then one active-set finish.

The method of ``interior`` and ``small`` with a leading instance axis. About 20 rounds of batched matrix products and
Cholesky factors of (d, d), so that a GPU has work; on one CPU core DAQP is several times faster.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.svm.batch_rows import ManyRows, inverse
from lightning_maxmargin.svm.rows import Array

# One more column b/SLACK, as in ``small``: the problem then has a solution where the rows cannot be met.
SLACK = 1e3
STEP = 0.995
ROUNDS = 60
TOL = 1e-13
# Rows whose part outside the span of the others is smaller than this share add only rounding.
JITTER = 1e-14


def solve_on(rows: ManyRows, device: torch.device) -> tuple[Array, Array]:
    """Directions (B, d) or (B, d, dq) and multipliers (B, M), float64, computed on ``device``."""
    scale = inverse(rows.row_norms)
    if scale.shape[1] == 0:
        return np.zeros((len(scale), *rows.shape)), scale
    b = rows.rhs * scale
    b *= inverse(b.max(axis=1, initial=0.0))[:, None]
    live = (rows.row_norms > 0) & (np.ones_like(b, bool) if rows.live is None else rows.live)
    z = rows.own_queries
    delta, s, bt, lt = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (rows.delta, scale, b, live))
    A = delta * s[:, :, None]
    if z is not None and rows.delta.shape[2] * z.shape[2] <= A.shape[1]:
        A = (A[:, :, :, None] * torch.from_numpy(z).to(device)[:, :, None, :]).flatten(2)
    elif z is not None:
        factor, _ = torch.linalg.cholesky_ex(torch.from_numpy(rows.gram()).to(device))
        A = factor * lt[:, :, None]
    lam = solve_batch(A, bt, lt).cpu().numpy() * scale
    return rows.combine(lam), lam


def solve_batch(A: Tensor, b: Tensor, live: Tensor) -> Tensor:
    """Multipliers lam >= 0 (B, M) of ``min .5||p||^2 s.t. A p >= b`` for all instances.

    Args: A (B, M, r) rows of unit norm, b (B, M) with largest entry 1, live (B, M) the rows that count.
    Instances that no p solves come out with multipliers that certify nothing.
    """
    wide = torch.cat([A, (b / SLACK)[:, :, None]], dim=2)
    lam, slack = _interior(wide, b, live)
    # The shared slack only shortens p: A'lam has the direction of the answer.
    p = torch.einsum("bm,bmr->br", lam, A)
    square = (p**2).sum(1)
    factor = (lam * b).sum(1) / square.clamp_min(torch.finfo(square.dtype).tiny)
    lam = torch.where(square[:, None] > 0, lam * factor[:, None], lam)
    return _finish(A, b, lam, live & (lam > slack * factor[:, None]))


def _interior(A: Tensor, b: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Mehrotra's predictor-corrector on the (r, r) normal equations; lam and slack (B, M)."""
    on = live.to(A.dtype)
    count = on.sum(1).clamp_min(1)
    total = torch.einsum("bm,bmr->br", on, A)
    size = (b.sum(1) / (total**2).sum(1).clamp_min(1e-300)).clamp_min(1 / A.shape[1])
    lam = on * size[:, None]
    y = _times(A, lam)
    z = on * ((y - b).clamp_min(0) + (y - b).abs().amax(1).clamp_min(1)[:, None])
    going = torch.ones_like(count, dtype=torch.bool)
    for _ in range(ROUNDS):
        residual = on * (y - b - z)
        gap = (lam * z).sum(1)
        half = 0.5 * (lam * y).sum(1)
        scale = half.abs() + ((lam * b).sum(1) - half).abs()
        going = going & ((gap > TOL * scale) | ((residual.abs() * lam).sum(1) > TOL * scale))
        if not going.any():
            break
        lam_new, z_new, y_new, fine = _step(A, on, count, lam, z, y, residual, gap)
        going = going & fine
        keep = going[:, None]
        lam, z, y = torch.where(keep, lam_new, lam), torch.where(keep, z_new, z), torch.where(keep, y_new, y)
    return lam, z


def _times(A: Tensor, lam: Tensor) -> Tensor:
    return torch.einsum("bmr,br->bm", A, torch.einsum("bm,bmr->br", lam, A))


def _step(
    A: Tensor, on: Tensor, count: Tensor, lam: Tensor, z: Tensor, y: Tensor, residual: Tensor, gap: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Rows that do not count hold lam = z = 0 and weight 0.
    dead = 1 - on
    weight = on * (lam / (z + dead)).clamp_max(1e14)
    normal = torch.matmul(A.transpose(1, 2), A * weight[:, :, None])
    normal.diagonal(dim1=1, dim2=2).add_(1.0)
    factor, bad = torch.linalg.cholesky_ex(normal)

    def newton(low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = on * (low / (lam + dead) - residual)
        dp = torch.cholesky_solve(torch.einsum("bm,bmr->br", weight * h, A)[:, :, None], factor)
        dy = torch.matmul(A, dp)[:, :, 0] * on
        dlam = weight * (h - dy)
        return dlam, on * (low - z * dlam) / (lam + dead), dy

    dlam, dz, _ = newton(-lam * z)
    length = torch.minimum(_longest(lam, dlam), _longest(z, dz))
    after = ((lam + length * dlam) * (z + length * dz)).sum(1)
    centre = gap / count * (after / gap.clamp_min(1e-300)).clamp(0, 1) ** 3
    dlam, dz, dy = newton(on * (centre[:, None] - lam * z - dlam * dz))
    length = STEP * torch.minimum(_longest(lam, dlam), _longest(z, dz))
    fine = (bad == 0) & torch.isfinite(length[:, 0]) & (length[:, 0] > 1e-10)
    return lam + length * dlam, z + length * dz, y + length * dy, fine


def _longest(x: Tensor, dx: Tensor) -> Tensor:
    """The share of the step that keeps x >= 0: (B, 1)."""
    return torch.where(dx < 0, -x / dx, torch.inf).amin(1, keepdim=True).clamp_max(1.0)


def _finish(A: Tensor, b: Tensor, lam: Tensor, active: Tensor, rounds: int = 5) -> Tensor:
    """Meet the active rows with equality, drop rows with lam < 0, add rows missed; the best by the gap."""
    best, best_gap = lam, _gap(A, b, lam, b > 0)
    gram = torch.matmul(A, A.transpose(1, 2))
    eye = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    for _ in range(rounds):
        on = active.to(b.dtype)
        square = gram * on[:, :, None] * on[:, None, :]
        factor, _ = torch.linalg.cholesky_ex(square + torch.diag_embed(1 - on) + JITTER * eye)
        trial = torch.zeros_like(b)
        for _ in range(3):
            rest = on * (b - torch.matmul(square, trial[:, :, None])[:, :, 0])
            trial = trial + torch.cholesky_solve(rest[:, :, None], factor)[:, :, 0]
        trial = torch.nan_to_num(trial)
        gap = _gap(A, b, trial.clamp_min(0), b > 0)
        better = gap < best_gap
        best = torch.where(better[:, None], trial.clamp_min(0), best)
        best_gap = torch.where(better, gap, best_gap)
        y = torch.matmul(gram, trial[:, :, None])[:, :, 0]
        active = (active & (trial > 0)) | ((y < b - 1e-12) & (A != 0).any(2))
        if (best_gap < TOL).all():
            break
    return best


def _gap(A: Tensor, b: Tensor, lam: Tensor, positive: Tensor) -> Tensor:
    """The relative gap of lam and p = A'lam, plus what rows with b = 0 miss: (B,)."""
    p = torch.einsum("bm,bmr->br", lam, A)
    y = torch.einsum("bmr,br->bm", A, p)
    smallest = torch.where(positive, y / b, torch.inf).amin(1)
    square = (p**2).sum(1)
    missed = torch.where(positive, 0.0, -y).amax(1).clamp_min(0) / square.sqrt()
    gap = 1 - ((lam * b).sum(1) * smallest / square) ** 2 + missed
    return torch.where((smallest > 0) & torch.isfinite(gap), gap, torch.inf)
