"""Instance-steps per second of an ensemble beside the public way, one instance at a time, in one run.

    .venv/bin/python scripts/benchmarks/ensemble.py [--quick] [--keep] [--seed N]

A thousand instances (n=6, T=8, d=10; unit tokens, labels by sign, the head given), float32 unless said. The last column
is the median direction gap of the settled instances to their own SVMs after 6,000 steps. One thread; three minutes.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import secrets
import statistics
from collections.abc import Callable
from typing import Any

import common
import torch
from rich.progress import track
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.stack import InstanceStack, pack
from lightning_maxmargin.data import RandomInstances
from lightning_maxmargin.probe.ensemble import measure
from lightning_maxmargin.reproduce.naive import NaiveEnsemble, loop_rate

COLUMNS = ["problem", "variant", "instance-steps per second", "times the loop", "median gap", "target"]
# The public notebooks step by .1; with it a gap of 1e-5 takes 17,000 steps, with 1 or acceleration for far fewer.
EXACT = {
    "exact, normalized, lr .1": {"update": "normalized", "attention_lr": 0.1},
    "exact, normalized, lr 1": {"update": "normalized", "attention_lr": 1.0},
    "exact, accelerated, lr 1": {"update": "accelerated", "attention_lr": 1.0},
}


def rate(step: Callable[[], Any], count: int, runs: int) -> float:
    """Median instance-steps per second of ``runs`` calls of 50 steps, after one that warms up."""

    def fifty() -> None:
        for _ in range(50):
            step()

    return statistics.median(50 * count / common.clock(fifty)[0] for _ in range(runs + 1))


def gap_of(state: EnsembleState, p: InstanceStack) -> float:
    """Median direction gap of the settled to the SVMs of what they select."""
    return measure(state, p.keys, p.labels, queries=p.queries).shares().get("direction_gap/strict", float("nan"))


def exact_row(
    p: InstanceStack, heads: Tensor, dtype: torch.dtype, options: dict[str, Any], steps: int, runs: int
) -> list[Any]:
    """Rate and gap of one exact variant."""
    data = Instances.stack(p.keys, p.labels, queries=p.queries).to(dtype)

    def fresh() -> EnsembleState:
        return EnsembleState(data, head=heads.T, train="attention", **options)

    timed, whole = fresh(), fresh()
    speed = rate(timed.step, len(p), runs)
    whole.run(steps)
    return [speed, gap_of(whole, p)]


def naive_row(p: InstanceStack, heads: Tensor, steps: int, runs: int) -> list[Any]:
    """The naive gradient of all instances by one autograd call, float32."""
    model = NaiveEnsemble(p.batch(torch.float32), head=heads.T, train="attention")
    speed = rate(model.step, len(p), runs)
    model.run(steps - 50 * (runs + 1))
    held = EnsembleState(
        Instances.stack(p.keys, p.labels, queries=p.queries), attention=model.attention.double(),
        head=heads.T, train="attention",
    )  # fmt: skip
    return [speed, gap_of(held, p)]


def rows_of(name: str, queries: bool, seed: int, quick: bool) -> list[list[str]]:
    """All variants of p, or of W, beside the loop of the same run."""
    data = RandomInstances(B=100 if quick else 1000, queries=queries, seed=seed)
    train, heads = data.sequences("train"), data.head
    assert train is not None
    assert heads is not None
    p, steps, runs = pack(train), 1000 if quick else 6000, 5
    first = None if p.queries is None else p.queries[0].float()
    loop = loop_rate(p.keys[0].float(), p.labels[0].float(), queries=first)
    found: list[tuple[str, list[Any], str]] = [("one instance, autograd", [loop, None], "")]
    found.append(("all instances, autograd", naive_row(p, heads, steps, runs), ""))
    for variant, options in track(EXACT.items(), name):
        target = ">= 200" if not queries else ""
        found.append((variant, exact_row(p, heads, torch.float32, options, steps, runs), target))
    found.append(
        ("the same in float64", exact_row(p, heads, torch.float64, EXACT["exact, accelerated, lr 1"], steps, runs), "")
    )
    again = loop_rate(p.keys[0].float(), p.labels[0].float(), queries=first)
    # The loop before and after: a machine that slows down in between slows both.
    base = statistics.mean([loop, again])
    return [
        [name, label, f"{speed:,.0f}", f"{speed / base:.0f}", "" if gap is None else f"{gap:.1e}", target]
        for label, (speed, gap), target in found
    ]


def main() -> None:
    """Run the benchmark."""
    options = common.flags(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    rows = [row for name, q in (("p", False), ("W", True)) for row in rows_of(name, q, seed, options.quick)]
    notes = (
        f"Seed {seed}, {'100' if options.quick else '1,000'} instances, medians of 5 runs of 50 steps after a warm-up. "
        "The loop is the public notebooks' way, measured before and after. CPU seconds of one thread."
    )
    common.show("Ensembles", COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
