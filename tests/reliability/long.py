"""The long form of the reliability tests: every scenario by the hundreds, and a table of what failed.

    python -m tests.reliability.long [--only NAME ...] [--share .1] [--seed N] [--keep]

``scripts/reliability.sh`` runs it. Exit status 1 where anything failed. ``--keep`` writes docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from tests.reliability.scenario import Tally, Trial, tries

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


class Scenario(NamedTuple):
    """What is tried, where its trial is, and how often."""

    title: str
    trial: str
    cases: int

    def load(self) -> Trial:
        """Imported when it is its turn: what one scenario needs does not burden another."""
        module, name = self.trial.split(":")
        trial: Trial = getattr(importlib.import_module(f"tests.reliability.{module}"), name)
        return trial


SCENARIOS: dict[str, Scenario] = {
    "words": Scenario("mutated configs and Trainer words", "words:trial", 300),
}


def measured(name: str, share: float, seed: int) -> tuple[Tally, float]:
    """The tally of one scenario, and its seconds; failures are printed as they are found."""
    scenario, start, tally, told = SCENARIOS[name], time.monotonic(), Tally(), 0
    cases = max(1, round(scenario.cases * share))
    for tally in track(tries(scenario.load(), cases, seed), name, cases):
        for line in tally.failures[told:]:
            print(f"{name}: {line}", flush=True)
        told = len(tally.failures)
    return tally, time.monotonic() - start


def page(rows: list[str], command: str) -> str:
    """docs/reliability.md."""
    head = ["| scenario | cases | failures | silent failures | minutes |", "|---|---|---|---|---|"]
    return "\n".join(["# Reliability", "", f"Made by `{command}`.", "", *head, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(SCENARIOS), help="scenarios; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases")
    parser.add_argument("--seed", type=int, help="of the cases; a fresh one by default")
    parser.add_argument("--keep", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    rows, failed = [], 0
    for name in options.only or SCENARIOS:
        tally, seconds = measured(name, options.share, seed)
        failed += len(tally.failures)
        cells = [SCENARIOS[name].title, f"{tally.cases:,}", str(len(tally.failures)), str(len(tally.silent))]
        rows.append(f"| {' | '.join([*cells, f'{seconds / 60:.1f}'])} |")
        print(rows[-1], flush=True)
    text = page(rows, f"scripts/reliability.sh --seed {seed}")
    print(text)
    if options.keep:
        PAGE.write_text(text, encoding="utf-8")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
