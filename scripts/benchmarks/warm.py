"""Solving again after the keys moved: warm against cold, one thread, fresh problems.

    .venv/bin/python scripts/benchmarks/warm.py [--quick] [--keep]

About a minute. --keep writes docs/benchmarks.md.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import secrets
from functools import partial

import common
import torch
from rich.progress import track

from lightning_maxmargin.svm import solve_att_svm

COLUMNS = ["problem", "keys moved", "cold", "warm", "cold / warm", "gap", "runs", "target"]
SHAPES = {
    "n=100, T=64, d=128": (100, 64, 128, None, None),
    "n=500, T=128, d=384": (500, 128, 384, None, None),
    "W, n=100, T=32, d=64, dq=64": (100, 32, 64, 64, None),
    "1,000 of n=6, T=8, d=10": (6, 8, 10, None, 1000),
}
TARGETS = {0.0: ">= 10", 0.001: "", 0.01: ">= 3", 0.3: ">= .91", -1.0: ">= .91"}


def moved(keys: torch.Tensor, by: float, seed: int) -> torch.Tensor:
    """Keys plus noise of ``by`` times their size; -1 for other keys altogether."""
    noise = torch.randn(keys.shape, generator=torch.Generator().manual_seed(seed), dtype=keys.dtype)
    return noise if by < 0 else keys + by * noise


def measure(label: str, by: float, runs: int, seed: int) -> list[str]:
    """One line of the table."""
    n, T, d, dq, count = SHAPES[label]
    cold, warm, ratios, gaps = [], [], [], []
    for at in range(runs + 1):
        keys, selected, z = common.planted(n, T, d, seed + at, dq, count)
        old = solve_att_svm(keys, selected, queries=z)
        new = moved(keys, by, seed + 1000 + at)
        if abs(by) >= 0.1:
            # So far from the old keys, the old selection may be impossible: what the old direction selects is not.
            p = torch.as_tensor(old.direction) if z is None else z @ torch.as_tensor(old.direction).T
            axes = "...ntd,...d->...nt" if z is None else "ntd,nd->nt"
            selected = torch.einsum(axes, new, p if by >= 0 else torch.randn_like(p)).argmax(-1)
        a, without = common.clock(partial(solve_att_svm, new, selected, queries=z))
        b, with_start = common.clock(partial(solve_att_svm, new, selected, queries=z, warm_start=old))
        assert with_start.status == without.status
        if at:
            cold.append(a)
            warm.append(b)
            ratios.append(a / b)
            gaps.append(float(torch.as_tensor(with_start.gap).max()))
    name = "other keys" if by < 0 else f"{by:.1%}"
    ratio = f"{sorted(ratios)[len(ratios) // 2]:.3g}"
    times = [common.time_text(cold), common.time_text(warm)]
    return [label, name, *times, ratio, f"{max(gaps):.0e}", str(runs), TARGETS[by]]


def main() -> None:
    """Run the benchmark."""
    options = common.flags(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    torch.manual_seed(seed)
    lines = [(label, by) for label in list(SHAPES)[: 1 if options.quick else None] for by in TARGETS]
    rows = [measure(label, by, 3 if options.quick else 7, seed) for label, by in track(lines, "solving")]
    notes = (
        f"Seed {seed}, a new problem each run, medians after a warm-up run. In the last two lines of each problem an "
        "old answer helps little: it must not cost more than a tenth. CPU seconds of one thread."
    )
    common.show("Warm starts", COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
