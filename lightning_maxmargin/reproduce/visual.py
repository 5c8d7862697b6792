"""Cross-attention in the plane: W goes to the Frobenius SVM, K and Q trained in its place to the nuclear one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel, ray
from lightning_maxmargin.reproduce.paths import cosine, cosines, entries, gap_panel, record, separating_line, track
from lightning_maxmargin.reproduce.problems import Problems
from lightning_maxmargin.reproduce.states import FactoredState

PRINTED_STEPS = (100, 500, 1000, 2000, 3000)
NAMES = {"frobenius": "Frobenius", "nuclear": "nuclear"}
COLORS = ("relaxed", "strict")
Axes = tuple[float, float]


def visual(
    progress: ProgressCallback,
    example: Literal["visual1", "visual2"],
    optimal: list[int],
    xlim: Axes,
    ylim: Axes,
    steps: int = 3000,
    lr: float = 0.1,
    seeds: int = 20,
    lines: bool = False,
) -> Outcome:
    """W from 0 and (K, Q) from K = .1 randn, Q = 0, by normalised steps with the example's head.

    Args:
        example: ``visual1`` or ``visual2``.
        optimal: the token of highest score in each sequence.
        xlim: of the pictures.
        ylim: of the pictures.
        steps: of exact and of naive float64 gradients.
        lr: of all.
        seeds: starts of K; the median one is drawn.
        lines: whether the separating lines are drawn, not the rays alone.

    Returns:
        ``frobenius`` and ``nuclear``: entries, ``norm`` and ``rank`` of the SVMs; ``cos/w/STEP`` with the Frobenius
        SVM, also ``naive/``; ``cos/kq/STEP`` with the nuclear one, the median of all seeds, and ``cos/kq/least/STEP``;
        ``cos/w/nuclear`` and ``cos/kq/frobenius``, the other way round; ``selected/share``, sequences of all runs that
        end at ``optimal``.
    """
    data = Problems.of(example)
    targets, numbers = _limits(data, torch.tensor(optimal))
    w, naive, kq = _trained(progress, data, steps, lr, seeds)
    progress(0.9)
    frobenius, nuclear = targets["frobenius"], targets["nuclear"]
    numbers |= cosines(w, frobenius, PRINTED_STEPS, "cos/w") | cosines(naive, frobenius, PRINTED_STEPS, "naive/cos/w")
    middle = _seeds(kq, nuclear, numbers)
    numbers["cos/w/nuclear"] = cosine(w[-1], nuclear)
    numbers["cos/kq/frobenius"] = cosine(kq[-1, middle], frobenius)
    chosen = data.copies(seeds + 1).scores(torch.cat([w[-1:], kq[-1]])).argmax(-1)
    numbers["selected/share"] = float((chosen == torch.tensor(optimal)).double().mean())
    axes = xlim, ylim
    panels = [
        _plane(data, w, frobenius, optimal, axes, "W trained", lines),
        _plane(data, kq[:, middle], nuclear, optimal, axes, "K and Q trained", lines),
        gap_panel("gap to the SVM", [
            ("W, Frobenius", "relaxed", w, frobenius, False),
            ("W, naive float64", "relaxed", naive, frobenius, True),
            ("K Qᵀ, nuclear", "strict", kq[:, middle], nuclear, False),
        ]),
    ]  # fmt: skip
    return Outcome(numbers, panels)


def _trained(
    progress: ProgressCallback, data: Problems, steps: int, lr: float, seeds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """W by exact and by naive gradients, (steps + 1, d, dq), and K Q' of every seed."""
    w = record(data.exact(attention_lr=lr), steps)[0][:, 0]
    progress(0.25)
    naive = record(data.naive(attention_lr=lr), steps)[0][:, 0]
    progress(0.5)
    K = torch.stack([torch.randn(2, 2, generator=torch.Generator().manual_seed(s)) for s in range(seeds)]).double()
    kq = record(FactoredState(data.copies(seeds), 0.1 * K, lr), steps)[0]
    return w, naive, kq


def _limits(data: Problems, optimal: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    from lightning_maxmargin.svm import solve_att_svm

    assert data.queries is not None
    found: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, norm in (("frobenius", "l2"), ("nuclear", "nuclear")):
        solution = solve_att_svm(data.keys[0], optimal, queries=data.queries[0], norm=norm)
        size = torch.linalg.svdvals(solution.direction)
        found[name] = solution.direction
        numbers |= entries(name, solution.direction)
        numbers[f"{name}/norm"] = 1 / float(solution.margin)
        numbers[f"{name}/rank"] = int((size > 1e-6 * size.max()).sum())
        numbers[f"{name}/gap"] = float(solution.gap)
    return found, numbers


def _seeds(kq: Tensor, target: Tensor, numbers: dict[str, float]) -> int:
    """Adds the cosines over all starts to the numbers, and returns the start that ends at their median."""
    order = [0]
    for i in (i for i in PRINTED_STEPS if i < len(kq)):
        found = [cosine(x, target) for x in kq[i]]
        order = sorted(range(len(found)), key=found.__getitem__)
        numbers[f"cos/kq/{i}"], numbers[f"cos/kq/least/{i}"] = found[order[len(order) // 2]], found[order[0]]
    return order[len(order) // 2]


def _plane(
    data: Problems, path: Tensor, target: Tensor, optimal: list[int], axes: tuple[Axes, Axes], title: str, lines: bool
) -> Panel:
    assert data.queries is not None
    panel = Panel(title, xlim=axes[0], ylim=axes[1], legend="below")
    for i, (z, color) in enumerate(zip(data.queries[0], COLORS, strict=True)):
        x = data.keys[0, i].numpy()
        panel.lines.append(track(path @ z, f"$W z_{i + 1}$", color, every=10 if lines or title != "W trained" else 100))
        panel.lines.append(ray((target @ z).numpy(), f"SVM, $z_{i + 1}$", color))
        if lines:
            ends = separating_line(data.keys[0, i : i + 1], target @ z, torch.tensor(optimal[i : i + 1]))
            panel.lines.append(Line(*ends, color=color, kind="dotted"))
            panel.lines.append(Line(x[:, 0], x[:, 1], color=color, kind="dots"))
    return panel
