"""Rank of the Frobenius and the nuclear solution on random data, against the dimension, and how often there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Panel, curve
from lightning_maxmargin.reproduce.problems import draw

NORMS = {"l2": "Frobenius", "nuclear": "nuclear"}


def rank(
    progress: ProgressCallback, sizes: list[list[int]], dims: list[int], seeds: int = 100, tolerance: float = 1e-6
) -> Outcome:
    """Solves both W problems for the optimal tokens of a random head, for every size, dimension and seed.

    Args:
        sizes: pairs of n and T.
        dims: d, of tokens and queries alike.
        seeds: instances of each.
        tolerance: singular values below this share of the largest count as zero. Those of certified solutions, whose
            duality gap is about 1e-11, end at 1e-10 and start at 1e-3, but for few (``unclear``).

    Returns:
        ``feasible/NxT/D``; of the feasible instances ``rank/NORM/NxT/D``, and ``naive/rank/NORM/NxT/D`` with rank 1
        for the others; ``rank/NORM`` and ``over/NORM`` of all feasible instances, mean rank and share above min(n, d);
        ``lower``, the share of them where the nuclear solution has no larger rank; ``unclear``, the share of all that
        have a singular value within a factor 100 of the tolerance; ``separable``, the smallest share from d = 5 on.
    """
    numbers: dict[str, float] = {}
    ranks: dict[str, list[Tensor]] = {norm: [] for norm in NORMS}
    unclear, bounds, missing = [], [], 0
    runs = [(n, T, d) for n, T in sizes for d in dims]
    for at, (n, T, d) in enumerate(runs):
        found, feasible = {}, torch.zeros(0)
        for norm in NORMS:
            found[norm], feasible, near = _ranks(seeds, n, T, d, norm, tolerance)
            unclear.append(near)
        good = feasible & (found["l2"] >= 0) & (found["nuclear"] >= 0)
        missing += int(feasible.sum() - good.sum())
        numbers[f"feasible/{n}x{T}/{d}"] = float(feasible.double().mean())
        for norm, r in found.items():
            ranks[norm].append(r[good])
            numbers[f"rank/{norm}/{n}x{T}/{d}"] = float(r[good].double().mean())
            numbers[f"naive/rank/{norm}/{n}x{T}/{d}"] = float(torch.where(good, r, 1).double().mean())
        bounds.append(torch.full((int(good.sum()),), min(n, d)))
        progress((at + 1) / len(runs))
    joined = {norm: torch.cat(r) for norm, r in ranks.items()}
    for norm, r in joined.items():
        numbers |= {f"rank/{norm}": float(r.double().mean())}
        numbers |= {f"over/{norm}": float((r > torch.cat(bounds)).double().mean())}
    numbers["lower"] = float((joined["nuclear"] <= joined["l2"]).double().mean())
    numbers["unclear"] = float(torch.cat(unclear).double().mean())
    numbers["separable"] = min(numbers[f"feasible/{n}x{T}/{d}"] for n, T, d in runs if d >= 5)
    notes = [
        f"{len(joined['l2']):,} of {seeds * len(runs):,} instances are feasible and certified in both norms; "
        f"not certified: {missing}. The rest are proved infeasible, each by a Farkas vector.",
        f"Zero means below {tolerance:g} of the largest singular value; {numbers['unclear']:.1%} of all solutions have "
        "one within a factor 100 of that on either side.",
    ]
    return Outcome(numbers, _panels(sizes, dims, numbers), notes)


def _ranks(seeds: int, n: int, T: int, d: int, norm: str, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per seed: rank (-1 where not certified), whether feasible, and whether a singular value is near the tolerance."""
    from lightning_maxmargin.svm import solve_att_svm

    drawn = draw(seeds, n, T, d, queries=True)
    solution = solve_att_svm(drawn.keys, drawn.token_scores(drawn.heads).argmax(2), queries=drawn.queries, norm=norm)
    s = torch.linalg.svdvals(solution.direction)
    s = s / s[:, :1].clamp_min(torch.finfo(s.dtype).tiny)
    good = torch.as_tensor(solution.certified)
    near = ((s > tolerance / 100) & (s < tolerance * 100)).any(1) & good
    return (
        torch.where(good, (s > tolerance).sum(1), -1),
        torch.tensor([status != "infeasible" for status in solution.status]),
        near,
    )


def _panels(sizes: list[list[int]], dims: list[int], numbers: dict[str, float]) -> list[Panel]:
    """Feasible shares, then the ranks by n with T = 5 and by T with n = 5, as published and of the feasible alone."""
    shares = [curve(numbers, f"feasible/{n}x{T}", dims, f"n = {n}, T = {T}") for n, T in sizes]
    panels = [Panel("share that any W separates", "dimension d", "feasible", shares, "x")]
    for n, T in sizes:
        lines = []
        for norm, color in (("l2", "#D55E00"), ("nuclear", "#0072B2")):
            key = f"rank/{norm}/{n}x{T}"
            lines.append(curve(numbers, key, dims, f"{NORMS[norm]}, feasible", color))
            lines.append(curve(numbers, f"naive/{key}", dims, "with infeasible as 1", color, "dotted"))
        panels.append(Panel(f"mean rank, n = {n}, T = {T}", "dimension d", "rank", lines, "x"))
    return panels
