"""A user's own arrays end at their limit by themselves, or say why they have none, with the config as it is shipped."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import config

SHAPES = [(10, 6, 32), (6, 8, 10), (12, 10, 40), (20, 5, 48)]
GAP = 1e-6


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Keys (n, T, d) and labels (n,) that nobody has tuned: normal numbers, signs by a coin."""
    rng = np.random.default_rng(seed)
    n, T, d = SHAPES[seed % len(SHAPES)]
    return {"keys": rng.normal(size=(n, T, d)), "labels": rng.choice([-1.0, 1.0], n)}


def ended(seed: int, maxmargin: Any, folder: Path) -> dict[str, Any]:
    """The summary of a run of the shipped config, with the seconds it took."""
    np.savez(folder / "data.npz", **arrays(seed))
    begun = time.perf_counter()
    outcome = maxmargin("fit", "--config", config("tensor"), "--data.path", "data.npz")
    assert outcome.status == 0, outcome.err
    return {**outcome.summary, "seconds": time.perf_counter() - begun}


def check(summary: dict[str, Any]) -> float | None:
    """The larger of both gaps where it has converged; None where it has said why not."""
    if "not converged" in summary["message"]:
        return None
    assert summary["steps"] < 60_000
    assert f"Stopped early at step {summary['steps']:,} of 60,000: converged:" in summary["message"]
    attention = summary["direction_gap/rate_coupled"] or summary["direction_gap/attention"]
    gap = max(attention, summary["direction_gap/head"] or 0.0)
    assert gap <= GAP
    return float(gap)


def test_arrays_end_by_themselves(tmp_path: Path, maxmargin: Any) -> None:
    assert check(ended(0, maxmargin, tmp_path)) is not None


@pytest.mark.slow
def test_twenty_arrays_end_by_themselves(tmp_path: Path, maxmargin: Any) -> None:
    """Shown with -s: steps, gap and seconds of each."""
    gaps = []
    for seed in range(20):
        summary = ended(seed, maxmargin, tmp_path)
        gaps.append(check(summary))
        shape = SHAPES[seed % len(SHAPES)]
        print(f"{seed:2} {shape!s:12} {summary['steps']:7,} {gaps[-1]} {summary['seconds']:5.1f} s")
    converged = [gap for gap in gaps if gap is not None]
    print(f"{len(converged)} of 20 converged, median gap {statistics.median(converged):.1e}")
    assert len(converged) >= 10
