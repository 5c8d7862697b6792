"""What the benchmarks share: fresh problems, timing side by side, a table on the screen and in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "numpy", "scipy", "daqp", "quadprog", "piqp", "cvxopt", "clarabel", "cvxpy", "scikit-learn", "jax")
# One problem of the batched case, one of a table's row: keys, selected, queries.
Problem = tuple[Tensor, Tensor, Tensor | None]


@dataclass
class Row:
    """One solver on one case: seconds of each run, and what it found short of the optimum."""

    case: str
    solver: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    target: str = ""

    def add(self, seconds: float, count: int, ours: float, short: float) -> None:
        """One run of ``count`` problems; ``ours`` are the seconds of our solver on the same ones."""
        self.seconds.append(seconds / count)
        self.ratios.append(seconds / ours)
        self.short.append(short)

    @property
    def cells(self) -> list[str]:
        """The row as text: time, ratio to ours, shortfall, runs, target."""
        short = f"{max(self.short):.0e}" if self.short else ""
        ratio = f"{statistics.median(self.ratios):.3g}" if self.ratios else ""
        return [self.case, self.solver, time_text(self.seconds), ratio, short, str(len(self.seconds)), self.target]


def time_text(seconds: list[float]) -> str:
    """The median with its unit."""
    t = statistics.median(seconds)
    return f"{t * 1e6:.3g} us" if t < 1e-3 else f"{t * 1e3:.3g} ms" if t < 1 else f"{t:.3g} s"


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call and what it returned, with the garbage collector out of the way.

    All of this runs on one thread, so that CPU seconds are those of an idle machine; on a busy one the wall clock would
    charge the neighbours to whoever was being timed.
    """
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        found = call()
        return time.process_time() - start, found
    finally:
        gc.enable()


def planted(n: int, T: int, d: int, seed: int, dq: int | None = None, count: int | None = None) -> Problem:
    """Gaussian keys whose selected tokens a random direction separates, by .5 more for p; count makes a batch."""
    g = torch.Generator().manual_seed(seed)
    many = () if count is None else (count,)
    keys = torch.randn(*many, n, T, d, generator=g, dtype=torch.float64)
    if dq is not None:
        z = torch.randn(n, dq, generator=g, dtype=torch.float64)
        p = z @ torch.randn(dq, d, generator=g, dtype=torch.float64)
        return keys, torch.einsum("ntd,nd->nt", keys, p).argmax(1), z
    u = torch.nn.functional.normalize(torch.randn(*many, 1, 1, d, generator=g, dtype=torch.float64), dim=-1)
    selected = (keys * u).sum(-1).argmax(-1)
    if count is None:
        keys[torch.arange(n), selected] += 0.5 * u[0, 0]
    return keys, selected, None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # of the benchmark extra, which only those of the solvers need
        return "absent"


def machine() -> str:
    """Processor, threads and versions, in one paragraph."""
    found = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        found = names[0] if names else found
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return f"{found}, one thread, Python {platform.python_version()}; {versions}."


def show(title: str, columns: list[str], rows: list[list[str]], notes: str, keep: bool) -> None:
    """Print the table; with ``keep`` also put it in docs/benchmarks.md in place of the earlier one of this title."""
    table = Table(title=title)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(120, Console().width))
    console.print(table)
    console.print(notes)
    if keep:
        write(title, columns, rows, notes)
        console.print(f"written to {PAGE.relative_to(PAGE.parents[1])}")


def write(title: str, columns: list[str], rows: list[list[str]], notes: str) -> None:
    """One section of the page."""
    lines = [f"## {title}", "", machine(), "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    section = "\n".join([*lines, "", notes, ""])
    head = (
        "# Benchmarks\n\nOne run of each script in `scripts/benchmarks/`; the extra `benchmark` installs the peers.\n"
    )
    page = PAGE.read_text() if PAGE.exists() else head
    before, mark, after = page.partition(f"## {title}\n")
    if mark:
        rest = after[after.index("\n## ") :] if "\n## " in after else ""
        page = before.rstrip() + "\n\n" + section + rest
    else:
        page = page + "\n" + section
    PAGE.write_text(page)


def flags(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems, few peers")
    parser.add_argument("--keep", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--seed", type=int, help="of the problems; a fresh one by default")
    return parser
