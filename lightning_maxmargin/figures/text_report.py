"""What the report of a run on text says: accuracy by label, words that decide, what its measures are good for."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_maxmargin.figures.baselines import baseline_context
from lightning_maxmargin.figures.classes import class_rows, confusion_cells
from lightning_maxmargin.figures.diagnosis import degrees
from lightning_maxmargin.figures.examples import choose
from lightning_maxmargin.figures.headline import percent, text_headline
from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.windows import shorten, shown_name, visible
from lightning_maxmargin.figures.words import Shade, document

#: Characters of a word that decides.
LONGEST_WORD = 60


class WordRow(NamedTuple):
    """The heaviest words of a predicted label."""

    label: str
    words: list[Shade]
    notes: list[str]


def text_context(run: RunFiles) -> dict[str, Any]:
    """What ``text_report.html`` draws."""
    corpus = run.corpus or {}
    labels, confusion, where = _measured(run)
    labels = [shown_name(name) for name in labels]
    return {
        "headline": text_headline(run, confusion),
        "verdict": verdict(run),
        "findings": [str(finding["sentence"]) for finding in corpus.get("findings", [])],
        **baseline_context(run, confusion),
        "classes": class_rows(labels, confusion),
        "labels": labels,
        "confusion": confusion_cells(confusion),
        "where": where,
        "words": word_rows(corpus),
        "svm": svm_words(run),
        "uses": uses(run),
        "documents": [document(example) for example in choose(run.examples)],
        "has_rationales": any(example.rationale for example in run.examples),
    }


def _measured(run: RunFiles) -> tuple[list[str], list[list[int]], str]:
    """Labels, confusion matrix and which documents they are of: test, else validation."""
    corpus = run.corpus or {}
    if run.test is not None:
        return list(map(str, run.test["labels"])), run.test["confusion"], "test"
    return [str(row["label"]) for row in corpus["classes"]], corpus["confusion"], "validation"


def verdict(run: RunFiles) -> str:
    """The outcome in a sentence or two."""
    corpus = run.corpus or {}
    accuracy, val, pool = run.number("test/accuracy"), corpus["accuracy"].get("val"), corpus["mean_pool"]
    parts = []
    if accuracy is not None:
        parts.append(f"{percent(accuracy)} of the test documents are classified correctly.")
    if val is not None:
        of, are = "Of the validation documents", "are"
        if accuracy is None:
            of, are = f"{of} (there is no test)", "are classified correctly"
        without = f"; mean pooling, without attention, gets {percent(pool['accuracy']['val'])}" if pool else ""
        parts.append(f"{of} {percent(val)} {are}{without}.")
    return " ".join(parts)


def word_rows(corpus: dict[str, Any]) -> list[WordRow]:
    """Per predicted label its heaviest words, and which of them decide alone."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in corpus.get("words", []):
        by_label.setdefault(str(row["label"]), []).append(row)
    found = []
    for label, rows in by_label.items():
        most = max(row["weight"] for row in rows) or 1.0
        drawn = [
            Shade(_word(row), "for" if row["evidence"] >= 0 else "against",
                  f"{0.85 * row['weight'] / most:.3f}", f"{row['weight']:.1%} of the weight, in {row['documents']:,} "
                  f"documents, decides in {row['decides']:.1%}")
            for row in rows
        ]  # fmt: skip
        notes = [f"{_word(row)} {row['decides']:.0%}" for row in rows if row["decides"] >= 0.02]
        found.append(WordRow(shown_name(label), drawn, notes))
    return found


def _word(row: dict[str, Any]) -> str:
    return shorten(visible(str(row["word"])), LONGEST_WORD)


def svm_words(run: RunFiles) -> list[str]:
    """How near the SVM direction the run is, and what its certificate tells all the same."""
    gap, margin, status = (
        run.number("direction_gap/strict"), run.number("relative_margin/attention"), run.text("status/attention"),
    )  # fmt: skip
    if not status:
        return [
            "The SVM of the attention was not solved: there are several selectors, or the encoder was trained, so that "
            "its tokens are not those on disk."
        ]
    if status == "infeasible":
        return [
            "No single direction puts the selected word of every training document ahead of its other words, with a "
            "proof: what is selected in one document contradicts another. On many or long documents this is usual, "
            "and it does not speak against the classifier."
        ]
    if status != "certified":
        return ["The solver gave no proof for the SVM of the attention, so nothing is said of it here."]
    parts = [
        "There is a direction that puts the selected word of every training document ahead of all its other words: the "
        "solver proved it, and proved that no direction does so by a larger margin. So what is selected in one "
        "document contradicts no other."
    ]
    if gap is not None and margin is not None:
        near = gap < 1e-3
        parts.append(
            f"The attention itself is {degrees(gap)} away from that direction and has {100 * margin:.3g} % of its "
            + ("margin: it has nearly reached the limit." if near else
               "margin. Far, as on all real text that we measured (0 to 4 % of the margin): the hard margin does not "
               "describe this training, and steps towards it lowered accuracy there. It is no reason to train for "
               "longer.")
        )  # fmt: skip
    return parts


def uses(run: RunFiles) -> list[str]:
    """What probability, lead and entropy of a document are good for, in this run's own numbers where there are any."""
    thirds = (run.test or {}).get("thirds", {})
    return [
        "Probability (the size of the logits) says whether the label is right."
        + _thirds(thirds.get("right by probability"), "right"),
        "Lead, the distance of the best score to the second, says whether the selection is stable: whether a sentence "
        "put beside the text leaves the selected word selected (of reviews it told that with an AUROC of 0.81)."
        + _thirds(thirds.get("right by lead"), "right"),
        "Entropy says how few words decided; where it is small, these are more often those that people mark."
        + _thirds(thirds.get("auprc by entropy"), ""),
    ]


def _thirds(found: Any, what: str) -> str:
    if not isinstance(found, list) or len(found) != 3:
        return ""
    values = [f"{percent(x)} {what}" if what else f"{x:.2f}" for x in found]
    shown = f"{values[0]}, {values[1]} and {values[2]}" if what else f"AUPRC {', '.join(values)}"
    return f" Here, from the lowest third of the test documents to the highest: {shown}."
