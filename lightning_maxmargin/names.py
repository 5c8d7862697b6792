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

#: What summary.json says besides.
SUMMARY = (
    "name",
    "gradient",
    "status/attention",
    "status/head",
    "svm/limit",
    "selection/tokens",
    "message",
    "steps",
    "test/accuracy",
    "test/selection/accuracy",
    "rationale/auprc",
    "seconds",
    "versions",
)
