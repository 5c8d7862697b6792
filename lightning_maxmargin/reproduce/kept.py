"""Several kept tokens under a nonlinear head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_maxmargin.kept import several_tokens as train
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.panel import Line, Panel

NAMES = {"combined": "W_fin + R W_dir", "direction": "W_dir", "one_token": "single-token SVM"}


def several_tokens(tick: Tick, dims: Sequence[int] = (4, 6, 8, 10), seeds: int = 100, steps: int = 2001) -> Outcome:
    """1 - correlation of W with the three predictions, by dimension.

    Args:
        tick: told the share done.
        dims: d.
        seeds: of each.
        steps: of normalised gradient descent.

    Returns:
        ``NAME/d``, means over the accepted seeds; ``multi/NAME/d`` over those of them that keep several tokens;
        ``accepted/d``, ``between/d``; and the smallest ratios over d of one mean to the next, ``order/finite`` and
        ``order/direction``: above 1 where the published order holds.
    """
    numbers: dict[str, float] = {}
    notes = []
    for at, d in enumerate(dims):
        result = train(d, seeds, steps=steps)
        accepted = int(result.accepted.sum())
        numbers |= {f"{name}/{d}": x for name, x in result.means().items()}
        several = result.accepted & (result.kept.sum(2) > 1).any(1)
        numbers |= {f"multi/{name}/{d}": float(getattr(result, name)[several].mean()) for name in NAMES}
        numbers |= {f"accepted/{d}": accepted, f"between/{d}": result.between}
        notes.append(
            f"d = {d}: {accepted} of {seeds} seeds accepted, {result.single} of these with one token a sequence; "
            f"{result.between} rejected for a weight between 1e-6 and 1e-3, {result.unsolved} for an SVM without a "
            "direction (nothing masked) or a solution"
        )
        tick((at + 1) / len(dims))
    numbers["order/finite"] = min(numbers[f"direction/{d}"] / numbers[f"combined/{d}"] for d in dims)
    numbers["order/direction"] = min(numbers[f"one_token/{d}"] / numbers[f"direction/{d}"] for d in dims)
    panels = [_panel(numbers, dims, "", "all accepted seeds"), _panel(numbers, dims, "multi/", "several tokens kept")]
    return Outcome(numbers, panels, notes, steps=steps * seeds * len(dims))


def _panel(numbers: dict[str, float], dims: Sequence[int], prefix: str, title: str) -> Panel:
    x = np.array(dims)
    lines = [Line(x, np.array([numbers[f"{prefix}{name}/{d}"] for d in dims]), words) for name, words in NAMES.items()]
    return Panel(title, "dimension d", "1 − correlation with W", lines, log="y")
