"""W and its factors on random data: each converges to its own solution, Frobenius or nuclear, of what it selected."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.probe.ensemble import MIN_SELECTED_MASS
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.naive import Speed
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.paths import record
from lightning_maxmargin.reproduce.problems import Problems, draw
from lightning_maxmargin.reproduce.states import EPS, FactoredState

NORMS = {"l2": "Frobenius", "nuclear": "nuclear"}
MODELS = {"W": "W", "KQ": "K Q'", "KQ0": "K Q' without ridge"}
COLORS = {"W": "#D55E00", "KQ": "#0072B2", "KQ0": "#009E73"}


def local_convergence(
    progress: ProgressCallback,
    n: int = 6,
    T: int = 8,
    d: int = 10,
    seeds: int = 100,
    steps: int = 2000,
    lr: float = 0.1,
) -> Outcome:
    """Trains W, and K and Q with and without ridge; correlations with both solutions of the tokens selected last.

    Args:
        n: sequences.
        T: tokens.
        d: dimensions of tokens, queries and the factors' columns.
        seeds: 0, 1, ...
        steps: normalised.
        lr: of W, K and Q.

    Returns:
        For W, KQ and KQ0 (no ridge) ``cos/MODEL/NORM/STEP``, ``mass/MODEL/STEP`` (mean over sequences of the largest
        attention), each the mean over seeds with ``deviation/...``, at 1,000 steps and at the end, and ``naive/...`` by
        naive float32 for W.
    """
    drawn, at = draw(seeds, n, T, d, queries=True), np.unique([*np.geomspace(10, steps, 24).astype(int), 1000, steps])
    at, speed, numbers = at[at <= steps], Speed(), {}
    paths: dict[str, Tensor] = {}
    notes: list[str] = []
    lines: dict[str, list[Line]] = {"cos": [], "mass": []}
    for model in (*MODELS, "naive"):
        with speed.training(drawn, steps if model != "naive" else 0):
            paths[model] = record(_runner(drawn, model, lr), steps, at.tolist())[0]
        progress(len(paths) / 5)
    for model, path in paths.items():
        curves, counts = _measure(drawn, path)
        prefix, name = ("naive/", "W") if model == "naive" else ("", model)
        notes += [] if prefix else [f"{MODELS[model]}: {counts}"]
        for key, values in curves.items():
            kind, _, norm = key.partition("/")
            full = f"{kind}/{name}" + (f"/{norm}" if norm else "")
            for step in {1000, steps} & set(at.tolist()):
                x = values[at == step][0]
                numbers[f"{prefix}{full}/{step}"] = float(np.nanmean(x))
                numbers[f"{prefix}deviation/{full}/{step}"] = float(np.nanstd(x))
            if not prefix:
                lines[kind].append(_line(at, values, name, norm))
    own, other = ([line for line in lines["cos"] if line.kind == kind] for kind in ("line", "dashed"))
    panels = [
        Panel("cosine with own solution", "step", "mean ± deviation", own, "x", ylim=(0.4, 1.02)),
        Panel("cosine with the other's", "step", "mean", other, "x", ylim=(0.4, 1.02)),
        Panel("largest attention of a sequence", "step", "mean ± deviation", lines["mass"], "x"),
    ]
    return Outcome(numbers, panels, notes, speed.ratio)


def _runner(drawn: Problems, model: str, lr: float) -> EnsembleState:
    """W, or K and Q, by exact directions, or W by naive float32 gradients."""
    if model == "naive":
        return drawn.naive(dtype=torch.float32, attention_lr=lr)
    if model == "W":
        return drawn.exact(attention_lr=lr)
    B, d = len(drawn), drawn.keys.shape[3]
    K = [torch.randn(d, d, generator=torch.Generator().manual_seed(b), dtype=torch.float64) for b in range(B)]
    return FactoredState(drawn, 0.1 * torch.stack(K), lr, EPS if model == "KQ" else 0.0, in_loss=model == "KQ")


def _measure(drawn: Problems, path: Tensor) -> tuple[dict[str, np.ndarray], str]:
    """``cos/NORM`` and ``mass`` (k, B) along a path, NaN where a solution is not certified; and how many settled."""
    from lightning_maxmargin.svm import solve_att_svm

    a = torch.stack([drawn.scores(W) for W in path])
    selected = a[-1].argmax(2)
    curves = {"mass": a.softmax(3).amax(3).mean(2).numpy()}
    missing = []
    for norm in NORMS:
        solution = solve_att_svm(drawn.keys, selected, queries=drawn.queries, norm=norm)
        good = torch.as_tensor(solution.certified)
        u = solution.direction.flatten(1)
        cosines = [torch.nn.functional.cosine_similarity(W.flatten(1), u) for W in path]
        curves[f"cos/{norm}"] = torch.where(good, torch.stack(cosines), torch.nan).numpy()
        missing.append(f"{int((~good).sum())} {NORMS[norm]}")
    still = int((a[-1].softmax(2).amax(2) < MIN_SELECTED_MASS).any(1).sum())
    return curves, (
        f"in {still} of {len(drawn)} instances some sequence's largest attention is below {MIN_SELECTED_MASS} at the "
        f"end (they stay in the means); not certified: {' and '.join(missing)} solutions."
    )


def _line(x: np.ndarray, values: np.ndarray, model: str, norm: str) -> Line:
    """Mean over the seeds; a band of one deviation either side where the solution is the model's own."""
    middle, width = np.nanmean(values, axis=1), np.nanstd(values, axis=1)
    own = norm in ("", "l2" if model == "W" else "nuclear")
    low, high = (middle - width, np.minimum(middle + width, 1.0)) if own else (None, None)
    label = f"{MODELS[model]}: {NORMS[norm]}" if norm else MODELS[model]
    return Line(x, middle, label, COLORS[model], "line" if own else "dashed", low=low, high=high)
