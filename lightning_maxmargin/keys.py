"""Every number of a run once: its key, meaning and format. Loggers, ``summary.json``, report and docs read it here.

A new key is one entry of the table below, or :func:`register_key` from outside. ``python -m lightning_maxmargin.keys``
prints the tables of the docs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lightning_maxmargin.errors import InputError

Format = Literal["gap", "near one", "number", "text"]
#: Who measures a key: MarginMonitor, HeadMonitor (of one head, or of all together), EnsembleMonitor, TextMonitor, the
#: module or the command line.
Source = Literal["selector", "head", "heads", "ensemble", "text", "module", "run"]

#: What a key holds; None where it is undefined.
Value = float | str | None

LIMITS = ("strict", "relaxed", "rate_coupled")
STEP = "trainer/global_step"
NORM = "norm/attention"
#: Where this variable is set, as in our tests, a monitor that measures a key that is not registered raises.
STRICT_VARIABLE = "MAXMARGIN_STRICT"


@dataclass(frozen=True)
class Key:
    """A number or word of a run.

    Attributes:
        name: as it is logged.
        meaning: one line.
        sources: who measures it.
        format: how the report writes it: ``gap`` (1.2e-08, or below rounding), ``near one`` (1 − 8e-9), ``number`` or
            ``text`` (not logged).
        axis: what W&B draws it against.
        best: which end of the run's curve W&B keeps besides the last value.
    """

    name: str
    meaning: str
    sources: tuple[Source, ...] = ("selector",)
    format: Format = "number"
    axis: str = STEP
    best: Literal["min", "max"] | None = None

    @property
    def group(self) -> str:
        """``direction_gap`` of ``direction_gap/strict``."""
        return self.name.split("/")[0]


def _gap(name: str, meaning: str, *sources: Source) -> Key:
    # Against the norm, for the gap falls as 1/norm^2.
    return Key(f"direction_gap/{name}", meaning, sources or ("selector",), "gap", NORM, "min")


def _margin(name: str, meaning: str, *sources: Source) -> Key:
    return Key(f"relative_margin/{name}", meaning, sources or ("selector",), "near one", best="max")


def _text(name: str, meaning: str, *sources: Source) -> Key:
    return Key(name, meaning, sources, "text")


_TABLE = (
    _text("name", "of the run", "run"),
    _text("gradient", "how the gradients were computed", "run"),
    _text("message", "what the numbers mean where they do not speak for themselves: a stall, an infeasible SVM, a "
          "selection that has not converged", "run"),
    _gap("attention", "½‖u − w‖² between the unit directions of attention and nearest SVM, in float64; "
         "0 is convergence"),
    _text("svm/limit", "which SVM is the nearest: strict, relaxed or rate_coupled", "selector"),
    _gap("strict", "the same to the strict SVM: every selected token ahead by 1", "selector", "ensemble"),
    _gap("relaxed", "the same to the relaxed SVM: ahead by 1 where the input supports the head, by 0 else",
         "selector", "ensemble"),
    _gap("rate_coupled", "the same to the SVM between the two that belongs to the ratio of the norms",
         "selector", "ensemble"),
    _gap("head", "the same between the head v and the label SVM of the selected tokens", "selector", "ensemble"),
    _margin("attention", "margin of the attention over that of the nearest SVM; 1 is optimal",
            "selector", "head", "ensemble"),
    _margin("median", "of an attention head: the same for the median sample; above 1 where that one is easier than the "
            "hardest", "head"),
    _margin("head", "margin of the head over the SVM's; 1 is optimal"),
    _text("svm/norm", "the norm whose margin the attention's optimizer maximises, in which its SVMs are solved, where "
          "it is not l2: linf of sign descent, spectral, a number p of mirror descent", "selector"),
    _text("svm/head_norm", "likewise that of the head", "selector"),
    _margin("norm", "that of the attention, where its norm is not l2"),
    _gap("norm", "likewise its direction gap, where the optimum in that norm is unique"),
    Key("margin/attention", "smallest lead of a selected token's score, over the norm of the weights",
        ("selector", "head")),
    Key("margin/head", "smallest Y v'x over the selected tokens, over the norm of v"),
    Key("margin/head_tenth", "10 % quantile of Y v'x over the selected tokens, over the norm of v"),
    Key("margin/head_met", "share of the selected tokens with Y v'x above 0: 1 where v separates the labels"),
    _text("status/attention", "of its SVM: certified (a dual solution proves it), infeasible (with a proof) or "
          "unverified", "selector", "head"),
    _text("status/head", "likewise of the label SVM", "selector"),
    Key(NORM, "norm of p or W; it grows without bound as the loss goes to 0", ("selector", "head", "ensemble")),
    Key("norm/head", "norm of v"),
    Key("norm_ratio", "rho, norm of v over norm of p or W: it decides the limit", ("selector", "ensemble")),
    Key("attention/selected_mass", "share of the attention on the selected token, mean over inputs; 1 is a hard "
        "selection", ("selector", "head"), "near one"),
    Key("attention/entropy", "entropy of the attention in nats, mean over inputs; 0 is a hard selection",
        ("selector", "head")),
    Key("attention/sparsity", "of an attention head: ‖s‖₁/‖s‖∞, mean over samples: T for uniform attention, 1 for one "
        "token", ("head",)),
    Key("attention/first", "of an attention head: share of the queries that select the first token they see ([CLS], "
        "the beginning of the sequence); near 1, whatever the input, it is a sink", ("head",)),
    Key("attention/last", "of an attention head: likewise the last token they see ([SEP]; in causal attention the "
        "query's own)", ("head",)),
    Key("attention/selected_value", "of an attention head: the selected token's share of the sum of s_t‖v_t‖ (where "
        "values are named)", ("head",)),
    Key("selection/locally_optimal", "share of inputs whose selected token beats its support neighbours"),
    Key("selection/globally_optimal", "share of inputs whose selected token has the best score of all"),
    Key("selection/accuracy", "share of inputs whose planted token is selected"),
    _text("selection/tokens", "the selected tokens of the first twenty inputs", "run"),
    Key("train/loss", "mean loss", ("module",)),
    Key("val/accuracy", "share of validation examples classified correctly", ("module",)),
    Key("val/selection/accuracy", "share of validation examples whose planted token is selected", ("module",)),
    Key("test/accuracy", "share of test examples classified correctly", ("module", "run")),
    Key("test/selection/accuracy", "share of test examples whose planted token is selected", ("module", "run")),
    Key("rationale/auprc", "agreement of the attention with marked rationales: area under precision and recall, mean "
        "over documents", ("run", "text")),
    Key("rationale/r_precision", "share marked among as many of the heaviest words as are marked", ("text",)),
    Key("rationale/token_f1", "F1 of as many of the heaviest words as are marked, mean over documents", ("text",)),
    Key("rationale/iou_f1", "F1 of spans of these words that overlap a marked one by half", ("text",)),
    Key("rationale/documents", "test documents with marked words", ("text",)),
    Key("margin/median_lead", "median over documents of (best score - second) / norm of the weights", ("text",)),
    Key("text/truncated", "documents of all splits that were cut at max_length", ("text",)),
    Key("text/empty", "documents with nothing to select", ("text",)),
    Key("val/loss", "mean loss of validation documents", ("text",)),
    Key("svm/duality_gap", "distance between the SVM's value and its proven bound", ("selector", "head")),
    Key("svm/violation", "largest violation of a row of the SVM", ("selector", "head")),
    Key("svm/support", "rows of the SVM that are tight", ("selector", "head")),
    Key("svm/rows_met", "of an attention head: share of rows with at least the SVM's margin; 1 at its solution",
        ("head",)),
    Key("heads/certified", "how many attention heads have a certified SVM", ("heads",)),
    Key("heads/infeasible", "how many have an infeasible one", ("heads",)),
    Key("ensemble/instances", "how many were trained; gaps, margins and norms are medians over the converged ones",
        ("ensemble",)),
    Key("ensemble/settled", "share converged to a hard selection: attention margin at least half of its SVM's, "
        "attention .99", ("ensemble",)),
    Key("ensemble/global", "share of the converged whose every selected token has the best score of its sequence",
        ("ensemble",)),
    Key("ensemble/local", "share of the converged that are locally optimal only", ("ensemble",)),
    Key("ensemble/neither", "share of the converged that are neither", ("ensemble",)),
    Key("ensemble/certified", "share whose strict SVM is certified", ("ensemble",)),
    Key("steps", "optimisation steps", ("run",)),
    Key("seconds", "duration of the run", ("run",)),
    Key("monitor/seconds", "of these, spent on watching (SVMs and metrics) before the last evaluation; of the "
        "processor's time where training went on meanwhile", ("selector", "heads", "ensemble")),
    Key("monitor/final_seconds", "of these, spent on the last evaluation, on everything where the budget covers it",
        ("selector", "heads", "ensemble")),
    Key("monitor/lag_steps", "steps that training had gone on when the numbers of an evaluation were there",
        ("selector", "heads", "ensemble")),
    Key("monitor/samples", "sequences that the evaluation was of; selection and head at the end are of all",
        ("selector", "heads")),
    _text("versions", "of Python and the packages", "run"),
)  # fmt: skip
_KEYS: dict[str, Key] = {key.name: key for key in _TABLE}


def register_key(
    name: str,
    meaning: str,
    *,
    format: Format = "number",
    axis: str = STEP,
    best: Literal["min", "max"] | None = None,
) -> Key:
    """Adds a key of your own: it is then logged, in ``summary.json`` (null where not measured) and in the report.

    Args:
        name: as it is logged; ``direction_gap/mine``.
        meaning: one line, for the report.
        format: ``gap``, ``near one``, ``number`` or ``text``.
        axis: what W&B draws it against.
        best: what W&B keeps of its curve besides the last value.

    Raises:
        InputError: the name is taken by another key, or empty.

    Example:
        >>> register_key("attention/two_tokens", "attention on the two heaviest tokens").group
        'attention'
        >>> _ = _KEYS.pop("attention/two_tokens")  # of this example alone
    """
    key = Key(name, meaning, ("selector",), format, axis, best)
    if not name or _KEYS.get(name, key) != key:
        raise InputError(f"register_key: {name!r} is registered with another meaning; choose another name")
    return _KEYS.setdefault(name, key)


def measured_by(*sources: Source) -> tuple[str, ...]:
    """The names of the keys that these measure, in the order of the table.

    Example:
        >>> measured_by("heads")[:3]
        ('heads/certified', 'heads/infeasible', 'monitor/seconds')
    """
    return tuple(key.name for key in _KEYS.values() if set(sources) & set(key.sources))


def registered() -> tuple[Key, ...]:
    """All keys, in the order of the table."""
    return tuple(_KEYS.values())


def find_key(name: str) -> Key | None:
    """The key of this name; ``LAYER/head0/KEY`` is KEY of an attention head.

    Example:
        >>> find_key("block1/head0/norm/attention").name, find_key("head0/svm/limit")
        ('norm/attention', None)
    """
    if name in _KEYS:
        return _KEYS[name]
    key = _KEYS.get("/".join(name.split("/")[-2:]))
    return key if key is not None and "head" in key.sources else None


def is_ours(name: str) -> bool:
    """Whether the key is one of this package's own measurements.

    Example:
        >>> is_ours("norm/head"), is_ours("direction_gap/mine")
        (True, False)
    """
    return any(key.name == name for key in _TABLE)


def check_registered(names: Iterable[str]) -> None:
    """In tests a key that is measured but not registered is an error; elsewhere it is logged all the same.

    Raises:
        LookupError: ``MAXMARGIN_STRICT`` is set, and one is not registered.
    """
    if not os.environ.get(STRICT_VARIABLE):
        return
    if unknown := [name for name in names if find_key(name) is None]:
        raise LookupError(f"measured but not registered: {', '.join(unknown)}; add them to keys.py or register_key()")


#: Gaps up to here are rounding of the solver's direction.
ROUNDING = 1e-17


def as_near(gap: float | None, nearest: float) -> bool:
    """Whether the data do not tell a limit from the nearest one: within a factor of 2, or both below rounding.

    Example:
        >>> as_near(4e-8, 3e-8), as_near(1e-2, 3e-8), as_near(None, 3e-8)
        (True, False, False)
    """
    return gap is not None and gap <= 2 * max(nearest, ROUNDING)


def markdown(*sources: Source) -> str:
    """The table of the keys that these measure, as the docs show it."""
    rows = [f"| `{key.name}` | {key.meaning} |" for key in _TABLE if set(sources) & set(key.sources)]
    return "\n".join(["| key | meaning |", "|---|---|", *rows])


if __name__ == "__main__":
    for sources in (("selector", "ensemble", "module", "run"), ("head", "heads"), ("text",)):
        print(markdown(*sources), end="\n\n")
