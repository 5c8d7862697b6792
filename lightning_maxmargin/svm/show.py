"""What a notebook shows of an answer: its status in words, margin, certificate and direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from markupsafe import Markup
from torch import Tensor

from lightning_maxmargin.html_table import MOST_ROWS, block, faint, mark, number, paragraph, rest_of, table, text
from lightning_maxmargin.svm.certificate import Status
from lightning_maxmargin.svm.solution import BatchSolution, Solution

if TYPE_CHECKING:
    from lightning_maxmargin.svm.joint import JointSolution

#: Numbers of a direction up to which all are shown, and of a row of it.
MOST_NUMBERS, MOST_COLUMNS = 36, 12


def vector(x: Tensor) -> str:
    """A small vector or matrix in full, of others the shape.

    Example:
        >>> vector(torch.tensor([1.25, 0.25])), vector(torch.zeros(3, 100))
        ('(1.25, 0.25)', 'of shape (3, 100)')
    """
    if x.ndim not in (1, 2) or x.numel() > MOST_NUMBERS or x.shape[-1] > MOST_COLUMNS:
        return f"of shape {tuple(x.shape)}"
    rows = ["(" + ", ".join(number(float(v)) for v in row) + ")" for row in torch.atleast_2d(x)]
    return ", ".join(rows)


def _support(solution: Solution) -> str:
    rows = solution.support.tolist()
    few = rows[:5]
    listed = ", ".join(f"({', '.join(map(str, row))})" if isinstance(row, list) else str(row) for row in few)
    what = "rows" if solution.support.ndim == 2 else "samples"
    return f"{len(rows):,} {what}" + (f": {listed}{', …' if len(rows) > len(few) else ''}" if rows else "")


def solution_rows(solution: Solution) -> list[tuple[object, object, object]]:
    """Name, value and meaning of what a Solution holds."""
    if solution.infeasible:
        found = [
            ("dual", f"{int((solution.dual != 0).sum()):,} weights", "that combine the rows to zero, which proves it"),
            ("violation", number(solution.violation), "how far from zero, relative to the rows"),
        ]
        return [(name, value, faint(meaning)) for name, value, meaning in found]
    of_norm = "" if solution.norm == "l2" else f" in the norm {solution.norm}"
    found = [
        ("margin", number(solution.margin), f"1 / ‖direction‖{of_norm}"),
        ("gap", number(solution.gap), "relative duality gap: how far the margin may be from the best"),
        ("violation", number(solution.violation), "largest relative violation of a row"),
        ("support", _support(solution), "tight at the optimum; of (sequence, token) where the rows are tokens"),
        ("direction", vector(solution.direction), "scaled so that the smallest row is 1"),
        ("iterations", number(solution.iterations), "rounds of constraint generation"),
    ]
    if solution.merged:
        found.append(("merged", number(solution.merged), "tokens equal to a selected one"))
    if solution.unique is not True:
        found.append(("unique", str(solution.unique), "whether the optimum is the only one; None: it need not be"))
    return [(name, value, faint(meaning)) for name, value, meaning in found]


def _status(status: Status) -> Markup:
    return Markup("{} {}").format(mark(str(status), str(status)), status.text)


def _body(solution: Solution) -> Markup:
    message = paragraph(faint(solution.message))
    return Markup("{}{}{}").format(paragraph(_status(solution.status)), table(solution_rows(solution)), message)


def solution_html(solution: Solution) -> str:
    """Of one problem."""
    return block("Solution", _body(solution))


def _batch_body(batch: BatchSolution) -> Markup:
    counts = {status: batch.status.count(status) for status in Status}
    marks = Markup(" ").join(mark(f"{n:,} {s}", str(s)) for s, n in counts.items() if n)
    rows = []
    for b in range(min(len(batch), MOST_ROWS)):
        one = batch[b]
        tight = f"{len(one.support):,}"
        status = mark(str(one.status), str(one.status))
        rows.append((f"[{b}]", status, number(one.margin), number(one.gap), number(one.violation), tight))
    header = ("", "status", "margin", "gap", "violation", "support")
    body = table(rows, header) if rows else paragraph("no problem")
    return Markup("{}{}{}").format(paragraph(marks), body, rest_of(len(batch), MOST_ROWS))


def batch_html(batch: BatchSolution) -> str:
    """Of a stack: how many of each status, and the first ones."""
    return block(f"BatchSolution of {len(batch):,} problems", _batch_body(batch))


def joint_html(joint: JointSolution) -> str:
    """Of attention and head of a limit."""
    parts: list[object] = []
    ratio = joint.norm_ratio
    if isinstance(ratio, int | float):
        parts.append(paragraph(f"norm ratio ‖v‖/‖p‖ = {number(ratio)}"))
    for name, solution in (("attention", joint.attention), ("head", joint.head)):
        found = _batch_body(solution) if isinstance(solution, BatchSolution) else _body(solution)
        parts += [Markup('<div style="margin:6px 0 0;font-weight:600">{}</div>').format(text(name)), found]
    return block(f"JointSolution, {joint.limit.replace('_', '-')} limit", *parts)
