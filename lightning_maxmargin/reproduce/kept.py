"""An active set of several tokens under a nonlinear head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Panel, curve
from lightning_maxmargin.reproduce.several_tokens import SeveralTokens
from lightning_maxmargin.reproduce.several_tokens import several_tokens as train

NAMES = {"combined": "W_fin + R W_dir", "direction": "W_dir", "one_token": "single-token SVM"}
#: 1 - correlation at step 2,000 by d, in the order of :data:`NAMES`, as published.
PUBLISHED = {
    4: (0.035, 0.07, 0.155),
    6: (0.0165, 0.043, 0.145),
    8: (0.011, 0.015, 0.135),
    10: (0.0055, 0.0085, 0.122),
}


def several_tokens(
    progress: ProgressCallback, dims: Sequence[int] = (4, 6, 8, 10), seeds: int = 100, steps: int = 2001
) -> Outcome:
    """1 - correlation of W with the three predictions, by dimension.

    Args:
        dims: d.
        seeds: of each.
        steps: of normalised gradient descent.

    Returns:
        ``NAME/d``, means over the accepted seeds; ``multi/NAME/d`` over the ``multi/d`` of them that keep several
        tokens in some sequence; ``single/d``, the share of the others; ``accepted/d``, ``between/d``; and the smallest
        ratios over d of one mean to the next, ``order/finite`` and ``order/direction``, and ``multi/order/...``: above
        1 where the published order holds.
    """
    numbers: dict[str, float] = {}
    notes = []
    for at, d in enumerate(dims):
        result = train(d, seeds, steps=steps)
        several = result.accepted & (result.kept.sum(2) > 1).any(1)
        accepted = int(result.accepted.sum())
        numbers |= {f"{name}/{d}": x for name, x in result.means().items()}
        numbers |= {f"multi/{name}/{d}": float(getattr(result, name)[several].mean()) for name in NAMES}
        numbers |= {f"accepted/{d}": accepted, f"between/{d}": result.between, f"multi/{d}": int(several.sum())}
        numbers[f"single/{d}"] = result.single / accepted if accepted else float("nan")
        notes += [_sizes(numbers, d), _counts(result, d, seeds)]
        progress((at + 1) / len(dims))
    for prefix in ("", "multi/"):
        for key, far, near in (("finite", "direction", "combined"), ("direction", "one_token", "direction")):
            ratios = [numbers[f"{prefix}{far}/{d}"] / numbers[f"{prefix}{near}/{d}"] for d in dims]
            # Not min: it passes over NaN.
            numbers[f"{prefix}order/{key}"] = float(np.min(ratios))
    panels = [_panel(numbers, dims, "", "all accepted seeds"), _panel(numbers, dims, "multi/", "several tokens active")]
    return Outcome(numbers, panels, notes)


def _panel(numbers: dict[str, float], dims: Sequence[int], prefix: str, title: str) -> Panel:
    lines = [curve(numbers, f"{prefix}{name}", dims, label) for name, label in NAMES.items()]
    return Panel(title, "dimension d", "1 − correlation with W", lines, log="y")


def _sizes(numbers: dict[str, float], d: int) -> str:
    """What was published beside ours."""
    parts = []
    for k, (name, label) in enumerate(NAMES.items()):
        ours = f"{label} {numbers[f'{name}/{d}']:.4f} (several tokens {numbers[f'multi/{name}/{d}']:.4f}"
        parts.append(f"{ours}, published {PUBLISHED[d][k]:g})" if d in PUBLISHED else f"{ours})")
    return f"d = {d}, mean 1 - correlation over all accepted seeds: {', '.join(parts)}"


def _counts(result: SeveralTokens, d: int, seeds: int) -> str:
    accepted = int(result.accepted.sum())
    return (
        f"d = {d}: {accepted} of {seeds} seeds accepted, {result.single} of these "
        f"({result.single / max(accepted, 1):.0%}) with one token in every sequence, where W_fin is 0; "
        f"{result.between} rejected for a weight between 1e-6 and 1e-3, {result.unsolved} for an SVM without a "
        "direction (nothing masked) or a solution"
    )
