"""Cases solved by the library, alone and in batches, and judged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm, solve_kept_svm, solve_label_svm, solve_rows
from tests.svm.audit_problems import Case
from tests.svm.exact_rows import ExactProblem, attention_rows, given_rows, kept_rows, label_rows
from tests.svm.exact_verdicts import Answer, Verdict, judge

DOORS: dict[str, tuple[Callable[..., Any], Callable[..., ExactProblem]]] = {
    "attention": (solve_att_svm, attention_rows),
    "labels": (solve_label_svm, label_rows),
    "rows": (solve_rows, given_rows),
    "kept": (solve_kept_svm, kept_rows),
}


def verdicts(case: Case) -> list[Verdict]:
    """One verdict, or of a joint problem two: the head's and, where it is defined, the attention's."""
    given = case.tensors()
    if case.door == "joint":
        joint = _called(solve_joint_svm, given)
        return [joint] if isinstance(joint, Verdict) else _joint(given, joint)
    solve, rows = DOORS[case.door]
    solution = _called(solve, given)
    if isinstance(solution, Verdict):
        return [replace(solution, feasible=rows(**given).feasible())]
    return [judge(rows(**given), Answer.of(solution))]


def _called(solve: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What the library returns, or the verdict that it refused the input or broke."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return solve(**given)
        except InputError as error:
            return Verdict("refused", message=str(error))
        except Exception as error:
            return Verdict("broken", f"{type(error).__name__}: {error}")


def _joint(given: dict[str, Any], joint: Any) -> list[Verdict]:
    found = [judge(label_rows(given["values"], given["labels"]), Answer.of(joint.head))]
    if joint.rhs is not None:
        more = {name: given[name] for name in ("queries", "mask") if name in given}
        rows = attention_rows(given["keys"], given["selected"], rhs=joint.rhs, **more)
        found.append(judge(rows, Answer.of(joint.attention)))
    return found


def batch_verdicts(cases: list[Case]) -> list[Verdict]:
    """Verdicts on cases of one shape solved at once; another status than alone is wrong, too."""
    solve, rows = DOORS[cases[0].door]
    each = [case.tensors() for case in cases]
    solution = _called(solve, {name: torch.stack([given[name] for given in each]) for name in each[0]})
    alone = [verdicts(case)[0].status for case in cases]
    if isinstance(solution, Verdict):
        # One instance that is refused alone refuses the batch.
        wrong = solution.wrong or ("" if solution.status in alone else "no instance is refused alone")
        return [replace(solution, wrong=wrong)] * len(cases)
    found = []
    for at, (given, status) in enumerate(zip(each, alone, strict=True)):
        verdict = judge(rows(**given), Answer.of(solution, at))
        differs = "" if verdict.status == status else f"it is {status} alone"
        found.append(replace(verdict, wrong=verdict.wrong or differs))
    return found
