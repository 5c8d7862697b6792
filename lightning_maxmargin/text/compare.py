"""``maxmargin compare``: two runs on the same documents, and whether the difference is more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_maxmargin.atomic import write_output
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.choice import print_choice, select
from lightning_maxmargin.text.faithful import agreement, marks_of
from lightning_maxmargin.text.finished import FinishedRun, check_options, read_run
from lightning_maxmargin.text.pooled import PoolingModel
from lightning_maxmargin.text.records import Documents
from lightning_maxmargin.text.significance import Interval, bootstrap_mean, mcnemar, paired_bootstrap

LEVEL = 0.05


def compare(options: Any) -> int:
    """Measures two runs on the same documents, and says which is better or that the data do not tell.

    Args:
        options: as :func:`~lightning_maxmargin.run.parsers.compare_parser` reads them.

    Raises:
        InputError: a directory is no finished run, the labels differ, or there are no test documents.
    """
    check_options(options.seed, options.output)
    if options.select is not None:
        chosen = select([options.run_a, options.run_b, *options.more], options.select)
        print_choice(chosen)
        return _written(chosen, options.output)
    if options.more:
        raise InputError("compare: two runs can be compared; to choose among more give --select accuracy+lead")
    runs = [read_run(options.run_a), read_run(options.run_b)]
    if set(runs[0].names) != set(runs[1].names):
        labels = " and ".join(f"{run.folder} {', '.join(run.names[:5])}" for run in runs)
        raise InputError(f"compare: the labels differ: {labels}; two runs of the same labels can be compared")
    documents = runs[0].test_documents(options.data)
    found = compared(runs, documents, options.seed) | {"data": runs[0].source(options.data)}
    _print(found)
    return _written(found, options.output)


def _written(found: Mapping[str, Any], output: str | None) -> int:
    if output is not None:
        write_output(Path(output), json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        print(output)
    return 0


def compared(runs: Sequence[FinishedRun], documents: Documents, seed: int = 0) -> dict[str, Any]:
    """Accuracy, AUPRC of the attention where words are marked, and their differences, A less B.

    Args:
        runs: A and B.
        documents: with labels.
        seed: of the bootstrap.
    """
    right, auprc = zip(*(_measured(run, documents) for run in runs), strict=True)
    test = mcnemar(*right)
    found: dict[str, Any] = {"runs": [str(run.folder) for run in runs], "documents": len(documents)}
    found["accuracy"] = _both(right, seed) | {
        "only_a_right": test.only_first, "only_b_right": test.only_second, "mcnemar_p": test.p,
    }  # fmt: skip
    common = sorted(set(auprc[0]) & set(auprc[1]))
    if common:
        values = [[part[i] for i in common] for part in auprc]
        found["auprc"] = _both(values, seed) | {"documents": len(common)}
    return found | {"sentences": sentences(found)}


def _measured(run: FinishedRun, documents: Documents) -> tuple[Any, Mapping[int, float]]:
    """Whether each document is right, (n,) bool, and AUPRC by marked document."""
    split = run.split(documents)
    model = PoolingModel(run.model, split)
    assert split.labels is not None
    right = np.asarray(model.predicted) == split.labels.numpy()
    marks = marks_of(split)
    scores = {i: model.documents[i].rationale("s") for i in marks}
    return right, dict(zip(scores, agreement(scores, marks).auprc.tolist(), strict=True))


def _both(values: Sequence[Any], seed: int) -> dict[str, Any]:
    a, b = (bootstrap_mean(np.asarray(part, dtype=np.float64), seed=seed) for part in values)
    difference = paired_bootstrap(values[0], values[1], seed=seed)
    return {"a": _listed(a), "b": _listed(b), "difference": _listed(difference)}


def _listed(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in plain words.

    Args:
        found: ``runs``, ``accuracy`` and, where words are marked, ``auprc``, as of :func:`compared`.
    """
    a, b = found["runs"]
    accuracy = found["accuracy"]
    gain, p = accuracy["difference"]["mean"], accuracy["mcnemar_p"]
    chance = f"McNemar's p = {p:.2g}, on {accuracy['only_a_right']} and {accuracy['only_b_right']} documents that one "
    chance += "alone got right"
    if p < LEVEL:
        lines = [f"{a if gain > 0 else b} classifies better, by {abs(gain):.3f} of accuracy ({chance})."]
    else:
        lines = [f"The data do not tell which classifies better ({chance})."]
    if "auprc" in found:
        gap = found["auprc"]["difference"]
        span = f"AUPRC differs by {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        if gap["low"] <= 0 <= gap["high"]:
            lines.append(f"The data do not tell which finds more of the words that people marked ({span}).")
        else:
            lines.append(f"{a if gap['mean'] > 0 else b} finds more of the words that people marked ({span}).")
    return lines


def _print(found: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(title=escape(f"{found['documents']} documents of {found['data']}"), title_justify="left")
    for name in ("", "accuracy", *(["AUPRC"] if "auprc" in found else [])):
        table.add_column(name)
    parts = [found[name] for name in ("accuracy", "auprc") if name in found]
    for label, key in (("A " + found["runs"][0], "a"), ("B " + found["runs"][1], "b"), ("A - B", "difference")):
        sign = "+" if key == "difference" else ""
        table.add_row(
            escape(label),
            *("{mean:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(**part[key], s=sign) for part in parts),
        )
    console.print(table)
    console.print("Brackets: 95 % bootstrap intervals, of A - B by pairs.")
    for line in found["sentences"]:
        console.print(line, markup=False)
