"""Exact directions against mpmath: 6,000 problems of which most have a key with several values, at gaps 1 to 10,000.

    .venv/bin/python scripts/audit_directions.py [--quick] [--seed N] [--masks]

A thousand problems of each kind (no copies; one, several; nearly, 1e-16 to 1e-6 apart; near ties of values), half of
them in float32, with p and W, with and without padding, logistic and exponential. Each by the exact direction of one
problem, by that of an ensemble of eight, and by centred autograd where the dtype can hold the gradient. Errors are of
the direction, relative; a problem fails where its error is above both 1e-9 (float64) and what rounding of its input
allows. Exit status 1 if one fails. Two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_maxmargin.core import waiting
from tests.core.copy_cases import KINDS, ROUTES, answers, draw_case, reference, relative_error, underflows

SHAPES = [(queries, mask) for queries in (False, True) for mask in (False, True)]


class Tally:
    """Worst error, worst share of what is allowed, and how many failed, of one row of the table."""

    def __init__(self) -> None:
        self.count, self.worst, self.share, self.failed = 0, 0.0, 0.0, 0

    def add(self, error: float, allowed: float, floor: float) -> None:
        self.count += 1
        self.worst, self.share = max(self.worst, error), max(self.share, error / max(allowed, floor))
        self.failed += error > max(allowed, floor)


def audit(per_kind: int, seed: int) -> dict[tuple[str, str, str], Tally]:
    """The table by kind, dtype and route."""
    tallies: dict[tuple[str, str, str], Tally] = {}
    blocks = list(itertools.product(KINDS, (torch.float64, torch.float32), SHAPES, (0, 1)))
    count = max(1, per_kind // (2 * len(SHAPES) * 2))
    for kind, dtype, shape, loss in track(blocks, "cases"):
        g = torch.Generator().manual_seed(seed + 7919 * blocks.index((kind, dtype, shape, loss)))
        gaps = 10 ** (4 * torch.rand(count, generator=g, dtype=torch.float64))
        seeds = 2 * torch.randint(2**40, (count,), generator=g) + loss
        cases = [draw_case(kind, s, gap, dtype, *shape) for s, gap in zip(seeds.tolist(), gaps.tolist(), strict=True)]
        for route in ROUTES:
            tally = tallies.setdefault((kind, str(dtype).removeprefix("torch."), route), Tally())
            for at in range(0, count, 8):
                part = cases[at : at + 8]
                for case, got in zip(part, answers(part, route), strict=True):
                    if route == "centred" and underflows(case):
                        continue
                    true, allowed = reference(case, route)
                    tally.add(relative_error(got, true), allowed, 1e-9 if dtype == torch.float64 else 0.0)
    return tallies


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--masks", action="store_true", help="by the roads of a GPU, masks in place of branches")
    options = parser.parse_args()
    if options.masks:
        waiting.answers_at_once = lambda x: False
    tallies = audit(100 if options.quick else 1000, options.seed)
    table = Table("kind", "dtype", "route", "problems", "worst error", "of what is allowed", "failed")
    for (kind, dtype, route), t in tallies.items():
        table.add_row(kind, dtype, route, str(t.count), f"{t.worst:.1e}", f"{t.share:.2g}", str(t.failed))
    Console(width=120).print(table)
    failed = sum(t.failed for t in tallies.values())
    print(f"{sum(t.count for t in tallies.values())} directions, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
