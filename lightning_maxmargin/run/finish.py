"""What a command shows and writes at its end: tables, the report, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_maxmargin.keys import LIMITS, as_near, registered
from lightning_maxmargin.keys_of_heads import NAME, table_of_heads
from lightning_maxmargin.run.summary import write_summary


def finish_fit(run_dir: Path, tested: dict[str, Any], seconds: float, report: bool) -> dict[str, Any]:
    """Completes ``summary.json``, writes the report and prints the table, all from the files of the run.

    Returns:
        What ``summary.json`` holds.
    """
    known = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    is_text = (run_dir / "corpus.json").is_file()
    if is_text:
        # Not measured where there are several selectors, or the encoder was trained.
        known.setdefault("margin/median_lead", None)
    summary = write_summary(run_dir, {**known, **tested, "seconds": seconds})
    print_summary(summary)
    if is_text:
        from lightning_maxmargin.text.card import write_card

        write_card(run_dir)
        print_findings(run_dir)
    # Unwrapped, to be copied.
    if not report:
        print(f"run {run_dir}")
        return summary
    from lightning_maxmargin.figures.report import write_report

    print(f"report {write_report(run_dir)}")
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """The table at the end of fit."""
    table = Table(title=str(summary["name"]), show_header=False, title_justify="left")
    for label, text in _lines(summary):
        table.add_row(label, text)
    monitor, last = (summary[f"monitor/{name}"] or 0.0 for name in ("seconds", "final_seconds"))
    spent = f"{summary['seconds']:.1f} (monitor {monitor:.1f}, last evaluation {last:.1f})"
    table.add_row("steps, seconds", f"{summary['steps']}, {spent}")
    console = Console()
    console.print(table)
    if summary["message"]:
        console.print(f"[bold]note[/bold] {summary['message']}")


def print_findings(run_dir: Path) -> None:
    """What is wrong with a run on text, a sentence each."""
    console = Console()
    for finding in json.loads((run_dir / "corpus.json").read_text(encoding="utf-8"))["findings"]:
        console.print("[bold]found[/bold]", escape(finding["sentence"]))


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if summary["ensemble/instances"]:
        return _ensemble_lines(summary)
    if "margin/median_lead" in summary:
        return _text_lines(summary)
    if "heads/certified" in summary:
        return _head_lines(summary)

    def pair(first: str, second: str, form: str = ".4f") -> str:
        return f"{_text(summary[first], form)}, {_text(summary[second], form)}"

    lines = [
        ("nearest limit", _nearest(summary)),
        ("status (attention, head)", f"{summary['status/attention'] or '-'}, {summary['status/head'] or '-'}"),
        *((f"direction gap to {k.replace('_', '-')}", _text(summary[f"direction_gap/{k}"], ".2e")) for k in LIMITS),
        ("direction gap of the head", _text(summary["direction_gap/head"], ".2e")),
        ("relative margin (attention, head)", pair("relative_margin/attention", "relative_margin/head")),
        ("norm (attention, head)", pair("norm/attention", "norm/head", ".2e")),
    ]
    if summary["svm/norm"]:
        label = f"relative margin in the optimizer's norm ({summary['svm/norm']})"
        lines.append((label, _text(summary["relative_margin/norm"])))
    if summary["selection/accuracy"] is not None:
        lines.insert(0, ("selection accuracy (train, test)", pair("selection/accuracy", "test/selection/accuracy")))
    elif summary["selection/tokens"]:
        lines.append(("selected tokens", summary["selection/tokens"]))
    if summary["test/accuracy"] is not None:
        lines.insert(0, ("test accuracy", _text(summary["test/accuracy"])))
    return lines


def _nearest(summary: dict[str, Any]) -> str:
    """The nearest limit, and those that are as near: where rho decides nothing, two or all three are one."""
    limit, nearest = summary["svm/limit"] or "-", summary["direction_gap/attention"]
    others = [] if nearest is None else [k for k in LIMITS if as_near(summary[f"direction_gap/{k}"], nearest)]
    return " = ".join(dict.fromkeys([limit, *others])).replace("_", "-")


def _ensemble_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    count = round(summary["ensemble/instances"])
    optima = ", ".join(_text(summary[f"ensemble/{k}"]) for k in ("global", "local", "neither"))
    gaps = [(k, f"median direction gap to {k.replace('_', '-')}") for k in LIMITS]
    gaps.append(("head", "median direction gap of the head"))
    return [
        ("instances, certified", f"{count:,}, {_text(summary['ensemble/certified'])}"),
        ("converged", _text(summary["ensemble/settled"])),
        ("of these global, local optima, neither", optima),
        *((label, _text(summary[f"direction_gap/{k}"], ".2e")) for k, label in gaps if summary[f"direction_gap/{k}"]),
        ("median relative margin", _text(summary["relative_margin/attention"])),
        ("median norm", _text(summary["norm/attention"], ".2e")),
    ]


def _text_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("test accuracy", _text(summary["test/accuracy"]))]
    if summary["rationale/auprc"] is not None:
        lines += [
            ("marked words: AUPRC, R-precision", f"{_text(summary['rationale/auprc'])}, "
             f"{_text(summary['rationale/r_precision'])}"),
            ("test documents with marked words", f"{summary['rationale/documents']:,.0f}"),
        ]  # fmt: skip
    lines += [
        ("median lead, entropy of the attention", f"{_text(summary['margin/median_lead'])}, "
         f"{_text(summary['attention/entropy'])}"),
        ("attention SVM", f"{summary['status/attention'] or '-'}, relative margin "
         f"{_text(summary['relative_margin/attention'])}"),
    ]  # fmt: skip
    return lines


def _head_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Of a module of the user's own: what it logged, and its heads."""
    margins = [x for row in table_of_heads(summary, "relative_margin/attention")[1] for x in row if x is not None]
    masses = [x for row in table_of_heads(summary, "attention/selected_mass")[1] for x in row if x is not None]
    ours = {key.name for key in registered()}
    logged = [k for k, x in summary.items() if k not in ours and not NAME.fullmatch(k) and isinstance(x, float)]
    return [
        *((escape(name), _text(summary[name], ".4g")) for name in logged if "/median/" not in name),
        # Which a module need not log: its own may be a loss alone.
        *((name, _text(x)) for name in ("test/accuracy", "val/accuracy") if (x := summary.get(name)) is not None),
        ("heads, with a certified SVM", f"{len(masses):,}, {_text(summary['heads/certified'], '.0f')}"),
        ("median relative margin of these", _text(median(margins)) if margins else "-"),
        ("median mass on the selected token", _text(median(masses)) if masses else "-"),
    ]


def _text(x: float | None, form: str = ".4f") -> str:
    return "-" if x is None else format(x, form)
