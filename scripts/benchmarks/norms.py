"""Time of each norm's attention SVM beside cvxpy with Clarabel, in one run: medians after a warm-up, and our gap.

    .venv/bin/python scripts/benchmarks/norms.py [--keep true] [--repeats 5] [--norms '[nuclear, 3]']

Random keys, queries and selected tokens; W (d, d) throughout. Clarabel has its default tolerances, cvxpy's
compilation counts as its own time, and the value column is how far apart the two optima are, relative.
One thread. Takes about five minutes.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
from jsonargparse import auto_cli
from rich.progress import track

from lightning_maxmargin.svm import RowProblem, Solution, norm_of, solve_att_svm
from lightning_maxmargin.svm.norms.registry import entry_of
from lightning_maxmargin.svm.norms.stated import solve_stated

TARGETS = {("nuclear", "20,10,16"): ">= 15", ("nuclear", "40,10,32"): ">= 40"}
#: Clarabel's own defaults; the tests' oracle wants 1e-12 and is slower.
DEFAULTS = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8}


def instance(n: int, T: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    queries = torch.randn(n, d, generator=g, dtype=torch.float64)
    return keys, torch.randint(T, (n,), generator=g), queries


def medians(calls: list[Callable[[], Any]], repeats: int) -> list[tuple[float, Any]]:
    """Median CPU seconds of each call and its answer, after a warm-up, called in turn."""
    answers = [call() for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            seconds.append(common.clock(call)[0])
    return [(statistics.median(seconds), answer) for seconds, answer in zip(times, answers, strict=True)]


def compare(norm: str | float, size: list[int], seed: int, repeats: int, peer: bool) -> list[str]:
    """One line of the table."""
    keys, selected, queries = instance(size[0], size[1], size[2], seed)
    problem = RowProblem.attention(keys, selected, queries)

    def ours() -> Solution:
        return solve_att_svm(keys, selected, queries=queries, norm=norm)

    def theirs() -> Any:
        rows, rhs = problem.rows(problem.ids), problem.rhs.ravel()[problem.ids]
        found = solve_stated(entry_of(norm), problem.shape, rows, rhs, settings=DEFAULTS)
        return None if found is None else found[0]

    found = medians([ours, theirs] if peer else [ours], repeats)
    seconds, solution = found[0]
    line = [str(norm), "x".join(map(str, size)), f"{len(problem.ids)}", solution.status, f"{1000 * seconds:.1f} ms"]
    if not peer:
        return [*line, "-", "-", f"{solution.gap:.0e}", "-"]
    slower, W = found[1]
    value = float("nan") if W is None else norm_of(W, norm)
    apart = abs(1 / float(solution.margin) - value) / value
    return [*line, f"{1000 * slower:.0f} ms", f"{slower / seconds:.1f}", f"{solution.gap:.0e}", f"{apart:.0e}"]


def main(
    norms: list[str | float] | None = None,
    sizes: list[str] | None = None,
    seed: int = 0,
    repeats: int = 5,
    peer: bool = True,
    keep: bool = False,
) -> None:
    """Print the table.

    Args:
        norms: those of ``solve_att_svm``; default nuclear, spectral, linf, 1.5, 3.
        sizes: n,T,d each.
        seed: of the data.
        repeats: calls that count, ours and cvxpy's in turn.
        peer: whether cvxpy is called at all.
        keep: whether the table goes to docs/benchmarks.md.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="cvxpy")
    columns = [
        "norm",
        "n x T x d",
        "rows",
        "status",
        "ours",
        "cvxpy+Clarabel",
        "ratio",
        "gap",
        "values apart",
        "target",
    ]
    rows = []
    for norm in track(norms or ["nuclear", "spectral", "linf", 1.5, 3.0], "solving"):
        for size in sizes or ["20,10,16", "40,10,32"]:
            numbers = [int(x) for x in size.split(",")]
            rows.append([*compare(norm, numbers, seed, repeats, peer), TARGETS.get((str(norm), size), "")])
    notes = f"Seed {seed}, medians of {repeats} after a warm-up run, in turn. CPU seconds of one thread."
    common.show("Norms", columns, rows, notes, keep)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
