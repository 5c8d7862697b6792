"""Holds every status of the solvers against exact rational arithmetic; exit status 1 if one is wrong.

    .venv/bin/python scripts/audit.py [--quick] [--ordinary 10000] [--extreme 1000] [--seed 0] [--cases FILE]

10,000 problems at scales 1e-12 to 1e12 and 1,000 at 1e-320 to 1e300. Prints, by family: what was claimed, what of it
is wrong, and of the unverified and the refused how many some direction does meet. --cases writes the wrong ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.svm.audit_cases import batch_verdicts, verdicts
from tests.svm.audit_problems import FAMILIES, Case, cases
from tests.svm.exact_verdicts import Verdict

STATUSES = ("certified", "infeasible", "unverified", "refused")
# loose: certified to 1e-7 though no direction meets the rows exactly. unverified: which some, which no direction meets.
WRONG = ("wrong certified", "wrong infeasible", "wrong else", "wrong in batch", "loose")
TRUTH = ("unverified, feasible", "unverified, infeasible", "refused, feasible", "refused, infeasible")
HEADS = ("problems", *STATUSES, *WRONG, *TRUTH)
QUICK = (400, 150)
SHOWN = 40
WIDTH = 220


@dataclass
class Tally:
    """Counts of one family."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.counts["problems"] += 1
        self.counts[verdict.status] += 1
        if verdict.wrong:
            self.counts[f"wrong {verdict.status}"] += 1
        elif verdict.feasible is not None:
            self.counts[f"{verdict.status}, {'feasible' if verdict.feasible else 'infeasible'}"] += 1

    def cells(self) -> list[str]:
        found = Counter(self.counts)
        named = sum(found[head] for head in HEADS if head.startswith("wrong"))
        found["wrong else"] = self.wrong - named
        found["loose"] = found["certified, infeasible"]
        return [str(found[head] or "") for head in HEADS]

    @property
    def wrong(self) -> int:
        return sum(n for name, n in self.counts.items() if name.startswith("wrong"))


def audit(families: dict[str, int], seed: int) -> tuple[dict[str, Tally], list[dict[str, Any]]]:
    """The tallies of so many problems of each family, and the wrong cases."""
    tallies: dict[str, Tally] = {name: Tally() for name in families}
    wrong: list[dict[str, Any]] = []
    with tqdm(total=sum(families.values()), unit="problem", mininterval=1) as bar:
        for name, count in families.items():
            for group in cases(name, count, seed):
                for case, verdict, how in judged(group):
                    if how != "batch":
                        tallies[name].add(verdict)
                    elif verdict.wrong:
                        tallies[name].counts["wrong in batch"] += 1
                    if verdict.wrong:
                        wrong.append(described(case, verdict, how))
                bar.update(len(group))
    return tallies, wrong


def judged(group: list[Case]) -> Iterator[tuple[Case, Verdict, str]]:
    """Verdicts on problems "alone" and, where there are several, in a "batch", which must say the same."""
    for case in group:
        yield from ((case, verdict, "alone") for verdict in verdicts(case))
    if len(group) > 1:
        yield from ((case, verdict, "batch") for case, verdict in zip(group, batch_verdicts(group), strict=True))


def described(case: Case, verdict: Verdict, how: str) -> dict[str, Any]:
    """A case as JSON; float64 numbers survive it."""
    given = {k: x.tolist() if isinstance(x, np.ndarray) else x for k, x in case.given.items()}
    return {"family": case.family, "door": case.door, "how": how, "status": verdict.status, "wrong": verdict.wrong} | {
        "given": given
    }


def table(tallies: dict[str, Tally]) -> Table:
    found = Table(box=box.SIMPLE, padding=(0, 1))
    found.add_column("family", no_wrap=True)
    for head in HEADS:
        found.add_column(head, justify="right")
    for name, tally in tallies.items():
        found.add_row(name, *tally.cells())
    total = Tally(sum((tally.counts for tally in tallies.values()), Counter()))
    found.add_section()
    found.add_row("all", *total.cells())
    return found


def main() -> int:
    """Runs the audit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ordinary", type=int, default=10_000)
    parser.add_argument("--extreme", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few hundred problems")
    parser.add_argument("--cases", type=Path, help="writes the wrong cases here, one JSON object a line")
    given = parser.parse_args()
    ordinary, extreme = QUICK if given.quick else (given.ordinary, given.extreme)
    names = {False: [n for n in FAMILIES if "extreme" not in n], True: [n for n in FAMILIES if "extreme" in n]}
    each = {False: -(-ordinary // len(names[False])), True: -(-extreme // len(names[True]))}
    tallies, wrong = audit({name: each[kind] for kind in names for name in names[kind]}, given.seed)
    Console(width=WIDTH).print(table(tallies))
    reasons = Counter(f"{case['family']}, {case['how']}: {case['status']}, but {case['wrong']}" for case in wrong)
    for reason, count in reasons.most_common(SHOWN):
        print(f"{count:4d} x {reason}")
    if given.cases is not None:
        given.cases.write_text("".join(json.dumps(case) + "\n" for case in wrong), encoding="utf-8")
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
