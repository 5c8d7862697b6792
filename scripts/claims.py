"""Runs what README claims and prints asked beside measured; exit status 1 if a claim does not hold.

    .venv/bin/python scripts/claims.py [--out docs/claims.md]

Claims on text of your own are those of text_claims.py. Needs the extras text and test (scikit-learn is the mean-pool
baseline). Takes about six minutes on two cores.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

import numpy as np
from claim import Row, command, fit, report, summary
from jsonargparse import auto_cli
from rich.progress import track

TWO_PROCESSES = "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"
SEEDS = (0, 1, 2)


def at_most(claim: str, key: str, limit: float, name: str, config: str, options: str = "") -> Row:
    value = summary(fit(name, config, options))[key]
    return Row(claim, f"<= {limit:.0e}", f"{value:.1e}", value <= limit, command(config, options))


def more_than(claim: str, key: str, limit: float, name: str, config: str, options: str = "") -> Row:
    value = summary(fit(name, config, options))[key]
    return Row(claim, f"> {limit:g}", f"{value:.3g}", value > limit, command(config, options))


def certified(name: str, config: str, options: str = "") -> Row:
    s = summary(fit(name, config, options))
    found = f"{s['status/attention']}, {s['status/head']}"
    return Row(f"{config}: both SVMs", "certified", found, found == "certified, certified", command(config, options))


def tight() -> Iterator[Row]:
    args = ("tight", "joint/tight")
    yield at_most("joint/tight: p to strict", "direction_gap/strict", 1e-6, *args)
    yield at_most("joint/tight: v", "direction_gap/head", 1e-6, *args)
    yield certified(*args)


def relaxed() -> Iterator[Row]:
    args = ("relaxed", "joint/relaxed")
    yield at_most("joint/relaxed: p to relaxed", "direction_gap/relaxed", 1e-6, *args)
    yield more_than("joint/relaxed: p to strict", "direction_gap/strict", 1e-2, *args)
    yield more_than("joint/relaxed: norm of p", "norm/attention", 1000, *args)
    naive = ("naive", "joint/relaxed", "--model.gradient naive")
    yield more_than("the same, naive gradient: p to relaxed", "direction_gap/relaxed", 1e-2, *naive)
    message = summary(fit(*naive))["message"]
    named = "stalled" in message
    yield Row(
        "the same: the report says so", "stall named", "named" if named else "not named", named, command(*naive[1:])
    )
    for precision in ("32-true", "bf16-mixed"):
        options = f"--trainer.precision {precision}"
        yield at_most(
            f"joint/relaxed in {precision}: to relaxed",
            "direction_gap/relaxed",
            1e-3,
            precision,
            "joint/relaxed",
            options,
        )


def same_paths(claim: str, config: str, one: str, options: str, other: str, other_options: str) -> Row:
    a, b = np.load(fit(one, config, options) / "paths.npz"), np.load(fit(other, config, other_options) / "paths.npz")
    gap = max(float(np.max(np.abs(a[k] - b[k]) / (1 + np.abs(b[k])))) for k in ("attention", "head"))
    return Row(claim, "<= 1e-10", f"{gap:.1e}", gap <= 1e-10, command(config, other_options))


def equalities() -> Iterator[Row]:
    prompt = "--model.prompt [0.3,-0.7]"
    yield same_paths(
        "joint/relaxed: p = W z at every step", "joint/relaxed", "prompt", prompt, "p", "--model.parametrization p"
    )
    yield same_paths("joint/relaxed: two processes", "joint/relaxed", "relaxed", "", "ddp", TWO_PROCESSES)


def random() -> Iterator[Row]:
    for seed in (0, 6, 9, 12):
        options = f"--data.seed {seed}"
        args = (f"random{seed}", "joint/random", options)
        yield at_most(f"joint/random seed {seed}: to rate-coupled", "direction_gap/rate_coupled", 1e-5, *args)
        s = summary(fit(*args))
        others = min(s["direction_gap/strict"], s["direction_gap/relaxed"])
        larger = others > s["direction_gap/rate_coupled"]
        yield Row(
            "the same: to strict and relaxed", "larger", f">= {others:.1e}", larger, command("joint/random", options)
        )


def attention() -> Iterator[Row]:
    yield at_most("attention/visual1: W to Frobenius", "direction_gap/strict", 1e-4, "visual1", "attention/visual1")


def ensembles() -> Iterator[Row]:
    args = ("ensemble", "ensemble/random")
    claim = "1,000 instances x 6,000 steps in float32: median gap to each one's SVM"
    yield at_most(claim, "direction_gap/strict", 2e-5, *args)
    yield more_than("the same: settled", "ensemble/settled", 0.95, *args)


def mean_pool_accuracy(seed: int) -> float:
    """Test accuracy of logistic regression on the mean token, its strength chosen by 5-fold cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    from lightning_maxmargin.data import PlantedText

    data = PlantedText(seed=seed)
    train, test = data.splits["train"], data.splits["test"]
    model = GridSearchCV(LogisticRegression(max_iter=2000), {"C": np.logspace(-3, 3, 7)}, cv=5)
    model.fit(train.keys.mean(1).numpy(), train.labels.numpy())
    return float(model.score(test.keys.mean(1).numpy(), test.labels.numpy()))


def text() -> Iterator[Row]:
    runs = [summary(fit(f"text{s}", "text/planted", f"--data.seed {s}")) for s in SEEDS]
    text_command = command("text/planted", "--data.seed 0|1|2")
    baseline = statistics.median(mean_pool_accuracy(s) for s in SEEDS)
    accuracy = statistics.median(r["test/accuracy"] for r in runs)
    yield Row(
        "text/planted: median accuracy",
        f">= {baseline:.3f} + .08",
        f"{accuracy:.3f}",
        accuracy >= baseline + 0.08,
        text_command,
    )
    selection = [r["test/selection/accuracy"] for r in runs]
    found = " ".join(f"{x:.3f}" for x in selection)
    yield Row("text/planted: selection, three seeds", ">= .70", found, min(selection) >= 0.7, text_command)
    status = [r["status/attention"] for r in runs]
    yield Row("text/planted: attention SVM", "certified", " ".join(status), set(status) == {"certified"}, text_command)
    heads = [r["status/head"] for r in runs]
    explained = all("no head separates" in r["message"] for r in runs)
    yield Row(
        "text/planted: label SVM, in words",
        "infeasible",
        " ".join(heads),
        set(heads) == {"infeasible"} and explained,
        text_command,
    )
    two = summary(fit("text-ddp", "text/planted", TWO_PROCESSES))
    moved = max(abs(two[k] - runs[0][k]) for k in ("test/accuracy", "test/selection/accuracy")) * 1000
    # A float32 accuracy is 1e-5 of a document off.
    yield Row(
        "text/planted: two processes, documents",
        "<= 1",
        f"{moved:.0f}",
        moved < 1.001,
        command("text/planted", TWO_PROCESSES),
    )


PARTS = (tight, relaxed, equalities, random, attention, ensembles, text)


def main(out: str | None = None) -> None:
    """Runs every claim.

    Args:
        out: a Markdown file for the table, besides the terminal.
    """
    rows = [row for part in track(PARTS, description="claims") for row in part()]
    made_by = ".venv/bin/python scripts/claims.py --out docs/claims.md"
    sys.exit(report(rows, out, "Theory, ensembles and planted text", made_by))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
