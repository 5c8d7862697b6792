"""The outcome of a run in plain language, made from its summary alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.style import NAMES, floored, format_number, near_one
from lightning_maxmargin.keys import LIMITS, ROUNDING, Key, as_near, find_key, registered
from lightning_maxmargin.keys_of_heads import NAME, medians_of_layers

STATUS = {
    "attention": {
        "certified": "The SVM of the attention is certified: a dual solution proves that no direction has a larger "
        "margin, so the gap is a distance to the true limit.",
        "infeasible": "The SVM of the attention is infeasible, with a proof: no weights put every selected token ahead "
        "of the other tokens of its sequence, so there is no max-margin direction to converge to.",
        "unverified": "The SVM of the attention is unverified: the solver gave a direction but no proof that it is the "
        "best, so its gaps and relative margins are estimates.",
    },
    "head": {
        "certified": "The SVM of the head is certified as well.",
        "infeasible": "The SVM of the head is infeasible, with a proof: no linear head separates the selected tokens "
        "by label, so the head has no hard-margin limit.",
        "unverified": "The SVM of the head is unverified: its gap and relative margin are estimates.",
    },
}
ACCURACIES = {
    "test/accuracy": "of the test examples are classified correctly",
    "selection/accuracy": "of the inputs select their planted token",
    "test/selection/accuracy": "of the test inputs do",
}


#: What stands before the key in the name of a layer's median.
MEDIAN = re.compile(r"^(?:.+/)?median/")


class Row(NamedTuple):
    """One line of the table of numbers."""

    name: str
    value: str
    meaning: str


def diagnosis(run: RunFiles) -> list[str]:
    """Sentences: how near to which limit, the margins, the certificates, the accuracy; what is unknown is left out."""
    if run.number("ensemble/instances"):
        return _ensemble(run)
    parts = [_attention(run), _other_gaps(run), _margins(run), *_statuses(run), _accuracy(run)]
    return [p for p in parts if p]


def _ensemble(run: RunFiles) -> list[str]:
    share = {
        k: f"{100 * (run.number(f'ensemble/{k}') or 0):.3g}\u00a0%" for k in ("settled", "global", "local", "neither")
    }
    parts = [
        f"Of {run.number('ensemble/instances'):,.0f} instances {share['settled']} have converged to a hard selection; "
        "an instance whose selection has not converged has no limit to be near, so it is counted here and left out of "
        "what follows.",
        f"Of the converged, {share['global']} select the best token everywhere, {share['local']} are locally optimal "
        f"(every selected token beats its support neighbours) and {share['neither']} are neither.",
    ]
    for key, limit in (
        ("strict", "strict SVM"),
        ("rate_coupled", "rate-coupled SVM"),
        ("head", "label SVM of the head"),
    ):
        gap = run.number(f"direction_gap/{key}")
        if gap is not None:
            parts.append(f"The median gap to each one's own {limit} is {_gap_text(gap)}.")
    return parts


def degrees(gap: float) -> str:
    """The angle whose 1 - cos is the gap.

    Example:
        >>> degrees(0.5)
        '60°'
    """
    return f"{format_number(math.degrees(2 * math.asin(min(1.0, math.sqrt(max(gap, 0.0) / 2)))))}°"


def _gap_text(gap: float) -> str:
    return floored(gap) + (f", an angle of {degrees(gap)}" if gap >= ROUNDING else "")


def _attention(run: RunFiles) -> str:
    gap, limit = run.number("direction_gap/attention"), run.text("svm/limit")
    if gap is None:
        if run.text("status/attention") == "infeasible":
            return ""
        return "The direction of the attention was not compared with an SVM in this run."
    name = f"{NAMES.get(limit, limit)} SVM" if limit else "its SVM"
    the = name if name.startswith("its") else f"the {name}"
    if run.text("message"):
        # A stalled run can stand still at a wrong limit: nearness alone is no convergence.
        return f"The attention ends nearest {the} (gap {_gap_text(gap)}); read this with the warning above."
    if gap < 1e-6:
        return f"The attention has converged in direction to {the} (gap {_gap_text(gap)})."
    if gap < 1e-3:
        return f"The attention is close to {the} (gap {_gap_text(gap)})."
    return f"The attention has not converged in direction; the nearest limit is {the} (gap {_gap_text(gap)})."


def _other_gaps(run: RunFiles) -> str:
    """To the other limits, and of the head to its own."""
    gaps = {k: run.number(f"direction_gap/{k}") for k in LIMITS if k != run.text("svm/limit")}
    known = {NAMES[k]: g for k, g in gaps.items() if g is not None}
    nearest, head = run.number("direction_gap/attention"), run.number("direction_gap/head")
    same = [k for k, g in known.items() if as_near(g, nearest)] if nearest is not None else []
    away = [f"{k} SVM {floored(g)} ({degrees(g)})" for k, g in known.items() if k not in same]
    parts = [f"The {' and the '.join(same)} SVM cannot be told apart from it here."] if same else []
    if away and nearest is not None:
        parts.append(f"Gap to the others: {', '.join(away)}.")
    if head is not None:
        parts.append(f"The gap of the head to its own SVM is {_gap_text(head)}.")
    return " ".join(parts)


def _margins(run: RunFiles) -> str:
    found = {k: run.number(f"relative_margin/{k}") for k in ("attention", "head")}
    parts = [f"{near_one(x)} for the {k}" for k, x in found.items() if x is not None]
    text = f"The relative margin (1 is the best possible) is {' and '.join(parts)}." if parts else ""
    own = run.number("relative_margin/norm")
    if own is None:
        return text
    return (
        f"{text} In the norm that the optimizer belongs to ({run.text('svm/norm')}) the attention's is {near_one(own)}."
    )


def _statuses(run: RunFiles) -> list[str]:
    both = [STATUS[part].get(run.text(f"status/{part}"), "") for part in ("attention", "head")]
    if run.text("status/attention") != "certified" and run.text("status/head") == "certified":
        both[1] = "The SVM of the head is certified: the solver proved that no head has a larger margin."
    return both


def _accuracy(run: RunFiles) -> str:
    found = {what: run.number(key) for key, what in ACCURACIES.items()}
    parts = [f"{100 * x:.4g}\u00a0% {what}" for what, x in found.items() if x is not None]
    return f"{', '.join(parts)}." if parts else ""


FORMATS: dict[str, Callable[[float], str]] = {"gap": floored, "near one": near_one, "number": format_number}


def number_table(run: RunFiles) -> list[Row]:
    """Every number that the run has: the registered keys in their order, then the others; of heads, layers' medians."""
    values = {name: x for name in run.summary if (x := run.number(name)) is not None}
    if any(NAME.fullmatch(name) for name in values):
        values = medians_of_layers(values)
    known = [key.name for key in registered()]
    gradient = find_key("gradient")
    rows = [Row(gradient.name, run.text(gradient.name), gradient.meaning)] if gradient and run.text("gradient") else []
    for name in [*known, *sorted(values.keys() - set(known))]:
        x, key = values.get(name), find_key(name) or find_key(MEDIAN.sub("", name)) or Key(name, "")
        if x is not None and key.format != "text":
            rows.append(Row(name, FORMATS[key.format](x), key.meaning))
    return rows
