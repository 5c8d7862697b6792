"""The long form of the reliability tests: every scenario by the hundreds, and a table of what failed.

    python -m tests.reliability.long [--only NAME ...] [--share .1] [--seed N] [--jobs 2] [--keep]

``scripts/reliability.sh`` runs it. Exit status 1 where anything failed. ``--keep`` writes docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning_maxmargin.atomic import write_text
from tests.reliability.scenario import Tally, tries, tries_together

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = ("| scenario | cases | failures | silent failures | minutes | command |", "|---|---|---|---|---|---|")


class Scenario(NamedTuple):
    """What is tried, where its trial is, how often, and how many cases at a time."""

    title: str
    trial: str
    cases: int
    at_once: int = 1

    def tries(self, cases: int, seed: int) -> Iterator[Tally]:
        """Imported when it is its turn: what one scenario needs does not burden another."""
        module, name = self.trial.split(":")
        trial: Any = getattr(importlib.import_module(f"tests.reliability.{module}"), name)
        return tries(trial, cases, seed) if self.at_once == 1 else tries_together(trial, cases, seed, self.at_once)


SCENARIOS: dict[str, Scenario] = {
    "kills": Scenario("kill -9 of runs with all defaults, one and two processes", "default_kills:trial", 160, 24),
    "saves": Scenario("kill -9 while saving at each .2 s, once or twice a run", "kills:trial", 80),
    "disk": Scenario("a disk that is full for a while, temporary files on another", "disk:trial", 20),
    "lost": Scenario("a process that raises, hangs, stops or dies", "processes:lost_trial", 20),
    "equal": Scenario("runs of two and three processes against one", "processes:equal_trial", 40),
    "numbers": Scenario("NaN and Inf in keys, labels, losses and gradients", "processes:poisoned_trial", 200),
    "wandb": Scenario("W&B stopped, killed, refused or slow at a random moment", "stopped_wandb:trial", 10),
    "soak": Scenario("10,000 steps with all callbacks: memory and open files", "soak:trial", 2),
    "checkpoints": Scenario("corrupted checkpoints, with and without sums", "corruption:trial", 2000),
    "fuzz": Scenario("fuzz of solvers, masks, texts, configs and checkpoints", "fuzz:trial", 10_000),
    "faults": Scenario("planted faults, each caught by a test", "faults:trial", 26),
    "words": Scenario("mutated configs and Trainer words", "words:trial", 300),
    "resumed": Scenario("words of a run that goes on", "resumed_words:trial", 300),
    "commands": Scenario("strange and misspelt words of every other command", "other_words:trial", 300),
}


def measured(name: str, cases: int, seed: int) -> tuple[Tally, float]:
    """The tally of one scenario, and its seconds; failures and each tenth are printed as they come."""
    start, tally, told = time.monotonic(), Tally(), 0
    for tally in SCENARIOS[name].tries(cases, seed):
        for line in tally.failures[told:]:
            print(f"{name}: {line}", flush=True)
        told = len(tally.failures)
        if tally.cases * 10 // cases > (tally.cases - 1) * 10 // cases:
            print(f"{name}: {tally.cases:,} of {cases:,} cases, {told} failures", flush=True)
    return tally, time.monotonic() - start


def row(name: str, share: float, seed: int) -> tuple[str, int]:
    """A scenario's line of the table, and its failures."""
    scenario = SCENARIOS[name]
    tally, seconds = measured(name, max(1, round(scenario.cases * share)), seed)
    of = "" if share == 1 else f" --share {share:g}"
    cells = [
        scenario.title,
        f"{tally.cases:,}",
        str(len(tally.failures)),
        str(len(tally.silent)),
        f"{seconds / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} | `scripts/reliability.sh --only {name}{of} --seed {seed}` |", len(tally.failures)


def row_of_a_process(name: str, share: float, seed: int) -> tuple[str, int]:
    """The same, measured in a process of its own: what one scenario leaves in memory does not burden another."""
    command = [
        sys.executable,
        "-m",
        "tests.reliability.long",
        "--only",
        name,
        "--share",
        str(share),
        "--seed",
        str(seed),
    ]
    found, failures = "", 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"| {SCENARIOS[name].title} |"):
                found = line.strip()
            elif line.startswith(f"{name}: "):
                print(line, end="", flush=True)
    if not found:
        raise RuntimeError(f"{name} ended with status {process.returncode}, and no line of the table")
    failures = int(found.split(" | ")[2])
    return found, failures


def lines(names: Sequence[str], share: float, seed: int, at_once: int) -> Iterator[tuple[str, int]]:
    """Of each scenario, in this order: those that fill the machine one after another, then the others together."""
    # One alone forks in this process, which has no other thread then.
    make = partial(row if len(names) == 1 else row_of_a_process, share=share, seed=seed)
    alone = [name for name in names if len(names) == 1 or SCENARIOS[name].at_once > 1]
    yield from map(make, alone)
    with ThreadPoolExecutor(at_once) as jobs:
        yield from jobs.map(make, names[len(alone) :])


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
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time, each in a process of its own")
    parser.add_argument("--keep", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    names = options.only or list(SCENARIOS)
    start, rows, failed = time.monotonic(), {}, 0
    # First those that fill the machine by themselves.
    names.sort(key=lambda name: SCENARIOS[name].at_once == 1)
    for name, (line, failures) in zip(names, lines(names, options.share, seed, options.jobs), strict=True):
        rows[SCENARIOS[name].title], failed = line, failed + failures
        if options.keep:
            write_text(PAGE, page(rows, PAGE.read_text(encoding="utf-8")))
    print(page(rows, ""))
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
