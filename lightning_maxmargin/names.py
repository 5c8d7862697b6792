"""Every key that is logged or written to ``summary.json``, in one place."""

from __future__ import annotations

LIMITS = ("strict", "relaxed", "rate_coupled")

#: What MarginMonitor measures; always all of them, None where one is undefined, so that every rank logs the same keys.
MEASURED = (
    "direction_gap/attention",
    "direction_gap/head",
    "direction_gap/strict",
    "direction_gap/relaxed",
    "direction_gap/rate_coupled",
    "relative_margin/attention",
    "relative_margin/head",
    "relative_margin/norm",
    "direction_gap/norm",
    "margin/attention",
    "margin/head",
    "svm/duality_gap",
    "svm/violation",
    "svm/support",
    "norm/attention",
    "norm/head",
    "norm_ratio",
    "attention/selected_mass",
    "attention/entropy",
    "selection/locally_optimal",
    "selection/globally_optimal",
    "selection/accuracy",
    "monitor/seconds",
)

#: What MarginMonitor measures of each head of a foreign module, as HEAD/KEY.
HEAD_MEASURED = (
    "relative_margin/attention",
    "relative_margin/median",
    "margin/attention",
    "norm/attention",
    "attention/sparsity",
    "attention/entropy",
    "attention/selected_mass",
    "attention/selected_value",
    "svm/rows_met",
    "svm/support",
    "svm/duality_gap",
    "svm/violation",
)

#: And of all its heads together.
HEADS_MEASURED = ("heads/certified", "heads/infeasible", "monitor/seconds")

#: What EnsembleMonitor measures of many instances; the gaps, margins and norms are medians over the settled ones.
ENSEMBLE = (
    "ensemble/instances",
    "ensemble/settled",
    "ensemble/global",
    "ensemble/local",
    "ensemble/neither",
    "ensemble/certified",
    "direction_gap/strict",
    "direction_gap/relaxed",
    "direction_gap/rate_coupled",
    "direction_gap/head",
    "relative_margin/attention",
    "norm/attention",
    "norm_ratio",
    "monitor/seconds",
)

#: Gaps up to here are rounding of the solver's direction.
ROUNDING = 1e-17


def as_near(gap: float | None, nearest: float) -> bool:
    """Whether the data do not tell a limit from the nearest one: within a factor of 2, or both below rounding.

    Example:
        >>> as_near(4e-8, 3e-8), as_near(1e-2, 3e-8), as_near(None, 3e-8)
        (True, False, False)
    """
    return gap is not None and gap <= 2 * max(nearest, ROUNDING)


#: What summary.json says besides.
SUMMARY = (
    "name",
    "gradient",
    "status/attention",
    "status/head",
    "svm/limit",
    "svm/norm",
    "selection/tokens",
    "message",
    "steps",
    "test/accuracy",
    "test/selection/accuracy",
    "rationale/auprc",
    "seconds",
    "versions",
)


def logged(key: str) -> bool:
    """Whether MarginMonitor logs this key: one of its lists, with or without a head before it.

    Example:
        >>> logged("norm/attention"), logged("block1/head0/norm/attention"), logged("head0/status/attention")
        (True, True, False)
    """
    return key in MEASURED + HEADS_MEASURED or "/".join(key.split("/")[-2:]) in HEAD_MEASURED
