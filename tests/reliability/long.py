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

from lightning_maxmargin.atomic import write_text
from tests.reliability.scenario import Tally, Trial, tries

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = ("| scenario | cases | failures | silent failures | minutes | command |", "|---|---|---|---|---|---|")


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
    "kills": Scenario("kill -9 at random times, one and two processes, once or twice a run", "kills:trial", 160),
    "disk": Scenario("a disk that is full for a while, temporary files on another", "disk:trial", 20),
    "wandb": Scenario("W&B stopped, killed, refused or slow at a random moment", "stopped_wandb:trial", 20),
    "soak": Scenario("10,000 steps with all callbacks: memory and open files", "soak:trial", 2),
    "checkpoints": Scenario("corrupted checkpoints, with and without sums", "corruption:trial", 2000),
    "fuzz": Scenario("fuzz of solvers, masks, texts, configs and checkpoints", "fuzz:trial", 10_000),
    "faults": Scenario("planted faults, each caught by a test", "faults:trial", 23),
    "words": Scenario("mutated configs and Trainer words", "words:trial", 300),
    "commands": Scenario("strange and misspelt words of every other command", "other_words:trial", 300),
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


def page(rows: dict[str, str], kept: str) -> str:
    """docs/reliability.md: these rows by the title of their scenario, all else as it was."""
    before, _, table = kept.partition(HEAD[0])
    known = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if line.startswith("| ")}
    titles = [scenario.title for scenario in SCENARIOS.values()]
    return before + "\n".join([*HEAD, *({**known, **rows}[t] for t in titles if t in {**known, **rows}), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(SCENARIOS), help="scenarios; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases")
    parser.add_argument("--seed", type=int, help="of the cases; a fresh one by default")
    parser.add_argument("--keep", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    rows: dict[str, str] = {}
    failed = 0
    for name in options.only or SCENARIOS:
        tally, seconds = measured(name, options.share, seed)
        failed += len(tally.failures)
        title, share = SCENARIOS[name].title, "" if options.share == 1 else f" --share {options.share:g}"
        cells = [title, f"{tally.cases:,}", str(len(tally.failures)), str(len(tally.silent)), f"{seconds / 60:.1f}"]
        rows[title] = f"| {' | '.join(cells)} | `scripts/reliability.sh --only {name}{share} --seed {seed}` |"
        print(rows[title], flush=True)
        if options.keep:
            write_text(PAGE, page(rows, PAGE.read_text(encoding="utf-8")))
    print(page(rows, ""))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
