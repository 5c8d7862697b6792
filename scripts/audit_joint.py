"""Counts the statuses of joint limits on solvable data, in memory and in blocks; exit status 1 if one is unverified.

    .venv/bin/python scripts/audit_joint.py [--seeds 100]

Keys and values are unit vectors in the shapes (300, 32, 128), (200, 64, 192) and (400, 32, 96), tokens those that a
random direction selects, labels the signs of another: so every problem is solvable. Solved are the relaxed limit and
the rate-coupled ones of norm ratio .3, 1 and 3; 100 seeds take about 5 CPU minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lightning_maxmargin import solve_att_svm, solve_joint_svm

SHAPES = ((300, 32, 128), (200, 64, 192), (400, 32, 96))
LIMITS = (("relaxed", None), ("rate_coupled", 0.3), ("rate_coupled", 1.0), ("rate_coupled", 3.0))
BLOCK = 64  # sequences


def joint_statuses(shape: tuple[int, int, int], seed: int) -> list[tuple[str, str, str]]:
    """(limit, status in memory, status in blocks) of the four limits of one problem."""
    n, _, d = shape
    g = torch.Generator().manual_seed(seed)
    tokens = torch.nn.functional.normalize(torch.randn(shape, generator=g, dtype=torch.float64), dim=2)
    selected = (tokens @ torch.randn(d, generator=g, dtype=torch.float64)).argmax(1)
    chosen = tokens[torch.arange(n), selected]
    labels = (chosen @ torch.randn(d, generator=g, dtype=torch.float64)).sign()
    blocks = [tokens[i : i + BLOCK] for i in range(0, n, BLOCK)]
    found, head = [], None
    for limit, ratio in LIMITS:
        options = {} if ratio is None else {"norm_ratio": ratio}
        solution = solve_joint_svm(tokens, tokens, labels, selected, limit=limit, head=head, **options)
        head = solution.head
        in_blocks = solve_att_svm(blocks, selected, rhs=solution.rhs)
        name = limit if ratio is None else f"{limit}, ratio {ratio:g}"
        found.append((name, str(solution.attention.status), str(in_blocks.status)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = parser.parse_args().seeds
    counts: Counter[tuple[str, str, str, str]] = Counter()
    with tqdm(total=seeds * len(SHAPES), desc="joint limits", leave=False) as bar:
        for shape in SHAPES:
            for seed in range(seeds):
                counts.update((str(shape), *statuses) for statuses in joint_statuses(shape, seed))
                bar.update()
    table = Table("shape", "limit", "in memory", "in blocks", "problems")
    for row, count in sorted(counts.items()):
        table.add_row(*row, str(count))
    Console(width=120).print(table)
    return int(any("unverified" in row for row in counts))


if __name__ == "__main__":
    sys.exit(main())
