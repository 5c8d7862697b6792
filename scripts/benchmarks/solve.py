"""Solving limit problems beside other solvers: one thread, fresh problems, the peers get explicit rows for nothing.

    .venv/bin/python scripts/benchmarks/solve.py [--quick] [--keep] [--cases tiny medium]

Needs the extra ``benchmark``. About twenty minutes, with --quick two. --keep writes docs/benchmarks.md.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
import peers
import torch
from rich.progress import track

from lightning_maxmargin.svm import RowProblem, solve_att_svm, solve_label_svm

COLUMNS = ["problem", "solver", "time", "times ours", "short of optimum", "runs", "target"]


@dataclass
class Case:
    """A shape, the peers with the runs each gets, and the targets as text; ``count`` problems, a batch or ``alone``."""

    label: str
    shape: tuple[int, int, int]
    peers: dict[str, int]
    dq: int | None = None
    count: int | None = None
    alone: bool = False
    runs: int = 5
    targets: tuple[tuple[str, str], ...] = ()


def alone(label: str, shape: tuple[int, int, int], count: int, target: str) -> Case:
    """Problems of a few hundred microseconds, each solved by a call of its own, and as many runs as they need."""
    peers = {"daqp": 9, "svc": 1, "linear_svc": 1} if shape[1] == 1 else {"daqp": 9, "quadprog": 9, "piqp": 3}
    return Case(f"one {label}", shape, peers, count=count, alone=True, runs=9, targets=(("daqp", target),))


ALONE = {
    "one": alone("n=6, T=8, d=10", (6, 8, 10), 50, ">= .125"),
    "one_16": alone("n=30, T=16, d=16", (30, 16, 16), 20, ">= .5"),
    "one_32": alone("n=60, T=32, d=32", (60, 32, 32), 10, ">= .83"),
    "one_short": alone("n=100, T=6, d=128", (100, 6, 128), 5, ">= .83"),
    "labels_alone": alone("labels n=500, d=20", (500, 1, 20), 20, ">= .67"),
}
FULL = ALONE | {
    "tiny": Case(
        "1,000 of n=6, T=8, d=10",
        (6, 8, 10),
        {"daqp": 9, "quadprog": 9, "piqp": 3, "cvxopt": 1, "clarabel": 1},
        count=1000,
        runs=9,
        targets=(("daqp", ">= .83"),),
    ),
    "medium": Case(
        "n=100, T=64, d=128",
        (100, 64, 128),
        {"daqp": 5, "quadprog": 5, "piqp": 5, "cvxopt": 3, "clarabel": 1},
        targets=(("daqp", ">= 2.2"), ("clarabel", ">= 100")),
    ),
    "matrix": Case(
        "W, n=100, T=32, d=64, dq=64",
        (100, 32, 64),
        {"cvxopt_dual": 2, "daqp": 1},
        dq=64,
        targets=(("cvxopt_dual", ">= 7"), ("daqp", ">= 7")),
    ),
    "labels": Case("labels n=2000, d=50", (2000, 1, 50), {"daqp": 5, "svc": 1, "linear_svc": 3}),
    "large": Case(
        "n=500, T=128, d=384",
        (500, 128, 384),
        {"cvxopt": 2, "daqp": 1, "clarabel": 1},
        targets=(("cvxopt", ">= 10"), ("daqp", ">= 10"), ("clarabel", ">= 250")),
    ),
    "huge": Case("n=2000, T=128, d=384", (2000, 128, 384), {"daqp": 1}, targets=(("daqp", ">= 40"),)),
    "classes10": Case("10 classes, n=600, d=50", (600, 10, 50), {"liblinear": 5}, targets=(("liblinear", ">= .67"),)),
    "classes30": Case("30 classes, n=600, d=50", (600, 30, 50), {"liblinear": 5}, targets=(("liblinear", ">= .2"),)),
    "matrix200": Case("W, n=200, T=32, d=64, dq=64", (200, 32, 64), {"cvxopt_dual": 1}, dq=64, runs=3),
    # The Gram of its 24,800 rows has 5 GB, which no peer here does without.
    "matrix800": Case("W, n=800, T=32, d=64, dq=64", (800, 32, 64), {}, dq=64, runs=3),
}
QUICK = ALONE | {
    "tiny": Case("200 of n=6, T=8, d=10", (6, 8, 10), {"daqp": 3, "quadprog": 3}, count=200, runs=3),
    "medium": Case("n=100, T=64, d=128", (100, 64, 128), {"daqp": 3, "piqp": 1}, runs=3),
    "matrix": Case("W, n=30, T=16, d=24, dq=24", (30, 16, 24), {"cvxopt_dual": 1, "daqp": 1}, dq=24, runs=3),
    "labels": Case("labels n=500, d=20", (500, 1, 20), {"daqp": 3, "svc": 1, "linear_svc": 1}, runs=3),
    "classes10": Case("10 classes, n=300, d=30", (300, 10, 30), {"liblinear": 3}, runs=3),
    "matrix200": Case("W, n=60, T=32, d=32, dq=32", (60, 32, 32), {"cvxopt_dual": 1}, dq=32, runs=3),
}


def label_problem(case: Case, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    n, _, d = case.shape
    x, u = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
    y = torch.sign(x @ u)
    return x + 0.5 * y[:, None] * u / u.norm(), y


def prepare(name: str, case: Case, seed: int) -> tuple[dict[str, Callable[[], Any]], list[peers.Array]]:
    """Our calls, and the explicit rows that the peers get."""
    if name.startswith("labels"):
        given = [label_problem(case, seed + 1000 * at) for at in range(case.count or 1)]
        return _ours(solve_label_svm, given, case), [(x * y[:, None]).numpy() for x, y in given]
    keys, selected, z = common.planted(*case.shape, seed, case.dq, case.count)
    if case.count is None:
        problem = RowProblem.attention(keys, selected, z)
        rows = [problem.rows(problem.ids)] if case.peers else []
        return {"ours": lambda: solve_att_svm(keys, selected, queries=z)}, rows
    given = list(zip(keys, selected, strict=True))
    chosen = [RowProblem.attention(*one) for one in given]
    ours = _ours(solve_att_svm, given if case.alone else [(keys, selected)], case)
    return ours, [problem.rows(problem.ids) for problem in chosen]


def _ours(
    solve: Callable[..., Any], given: list[tuple[torch.Tensor, torch.Tensor]], case: Case
) -> dict[str, Callable[[], Any]]:
    """One call with the only problem or batch, or a call for each of the problems."""
    if case.alone:
        return {"ours": lambda: [solve(*one) for one in given]}
    return {"ours": lambda: solve(*given[0])}


def margins_and_gap(found: Any) -> tuple[list[float], float]:
    """Of one answer, a batch of them or a list."""
    if isinstance(found, list):
        return [one.margin for one in found], max(one.gap for one in found)
    margins = torch.as_tensor(found.margin, dtype=torch.float64).reshape(-1).tolist()
    return margins, float(torch.as_tensor(found.gap).max())


def run(name: str, case: Case, seed: int) -> list[common.Row]:
    """All solvers on fresh problems, one after the other in each run."""
    targets, count = dict(case.targets), case.count or 1
    rows: dict[str, common.Row] = {}
    for at in range(case.runs + 1):
        ours, data = prepare(name, case, seed + at)
        first = 0.0
        margin: list[float] = []
        for solver, call in ours.items():
            seconds, found = common.clock(call)
            first = first or seconds
            margins, gap = margins_and_gap(found)
            margin = margin or margins
            if at:
                rows.setdefault(solver, common.Row(case.label, solver)).add(seconds, count, first, gap)
        for solver, runs in case.peers.items():
            # The first round warms up, where a peer is not a matter of minutes.
            if at > runs or (at == 0 and runs < 5):
                continue
            solve: peers.Peer = getattr(peers, solver)
            few = data if runs >= 3 else data[:50]
            seconds, found = common.clock(lambda solve=solve, few=few: [solve(D) for D in few])
            gap = max(peers.shortfall(D, p, best) for D, p, best in zip(few, found, margin, strict=False))
            if at:
                row = rows.setdefault(solver, common.Row(case.label, solver, target=targets.get(solver, "")))
                row.add(seconds * len(data) / len(few), count, first, gap)
    return list(rows.values())


def run_classes(case: Case, seed: int) -> list[common.Row]:
    """Crammer-Singer beside LIBLINEAR, which gets samples and classes as ours does; case.shape is (n, classes, d)."""
    n, classes, d = case.shape
    ours = common.Row(case.label, "ours")
    theirs = common.Row(case.label, "liblinear", target=dict(case.targets).get("liblinear", ""))
    for at in range(case.runs + 1):
        g = torch.Generator().manual_seed(seed + at)
        x, heads = (torch.randn(m, d, generator=g, dtype=torch.float64) for m in (n, classes))
        y = (x @ heads.T).argmax(1)
        x = x + 0.5 * torch.nn.functional.normalize(heads, dim=1)[y]
        seconds, found = common.clock(lambda x=x, y=y: solve_label_svm(x, y, num_classes=classes))
        slower, V = common.clock(lambda x=x, y=y: peers.liblinear(x.numpy(), y.numpy()))
        if at:
            ours.add(seconds, 1, seconds, found.gap)
            problem = RowProblem.multiclass(x, y, classes)
            length = float(np.linalg.norm(V))
            theirs.add(slower, 1, seconds, 1 - (float(problem.margins(V / length).min()) / found.margin) ** 2)
    return [ours, theirs]


def main() -> None:
    """Run the benchmark."""
    parser = common.flags(str(__doc__))
    parser.add_argument("--cases", nargs="+", choices=FULL, help="some of the problems")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    chosen = {n: c for n, c in (QUICK if options.quick else FULL).items() if not options.cases or n in options.cases}
    notes = (
        f"Seed {seed}, a new problem each run, every solver on the same ones; medians after a warm-up run, and peers "
        "that take minutes run once, without one. A batch's times are for one of its problems (cvxopt and Clarabel on "
        "50 of them), and so are those of problems with a call each. Ours starts from keys, the peers from explicit "
        "rows that cost them nothing here. Short of optimum: 1 - (margin / best margin)^2, the largest seen; for ours "
        "its certified gap. CPU seconds of one thread."
    )
    rows: list[list[str]] = []
    for name, case in track(chosen.items(), "solving"):
        found = run_classes(case, seed) if name.startswith("classes") else run(name, case, seed)
        rows += [row.cells for row in found]
        # Half an hour's work is kept case by case.
        if options.keep:
            common.write("Solving", COLUMNS, rows, notes)
    common.show("Solving", COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
