"""At which layer keys classify and select best, by cross-validation of all layers at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lightning_maxmargin.errors import InputError, check_seed
from lightning_maxmargin.metrics import RationaleAUPRC
from lightning_maxmargin.probe.text import leads
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.choice import rank_sums
from lightning_maxmargin.text.columns import (
    Held,
    Recipe,
    Tokens,
    first_columns,
    held_out,
    stratified_folds,
    train_columns,
)
from lightning_maxmargin.text.data import TextData
from lightning_maxmargin.text.rationales import word_scores

#: How a layer is chosen, in words.
RULES = {
    "accuracy": "accuracy on documents held out",
    "accuracy+lead": "rank of accuracy plus rank of median lead on documents held out",
    "accuracy+auprc": "rank of accuracy plus rank of AUPRC on documents held out",
}
#: Documents with words that people marked from which on their agreement chooses, not the lead that stands in for it.
ENOUGH_MARKED = 50


@dataclass(frozen=True)
class LayerRow:
    """What documents held out of training say of one key layer.

    Attributes:
        layer: of keys and values.
        folds: accuracy of each fold.
        auprc: of the words that people marked; None where they marked none.
        lead: the median of (best score - second)/||p||; None where no document has two units.
    """

    layer: int
    folds: list[float]
    auprc: float | None
    lead: float | None

    @property
    def accuracy(self) -> float:
        """The mean over folds."""
        return float(np.mean(self.folds))

    @property
    def deviation(self) -> float:
        """The standard deviation over folds."""
        return float(np.std(self.folds, ddof=1))


@dataclass(frozen=True)
class LayerTable:
    """All key layers of an encoder on some documents.

    Attributes:
        rows: by layer.
        default: the layer at two thirds of the depth.
        documents: how many.
        marked: how many of them have words that people marked.
        seconds: of encoding and of training.
        rule: how a layer is chosen.
    """

    rows: list[LayerRow]
    default: int
    documents: int
    marked: int
    seconds: dict[str, float]
    rule: str = "accuracy"

    @property
    def rank_sums(self) -> list[float]:
        """Rank of each row by what the rule names, summed; equal numbers share their mean rank."""
        numbers = {name: [getattr(row, name) for row in self.rows] for name in ("accuracy", "lead", "auprc")}
        return rank_sums(numbers, self.rule)

    @property
    def chosen(self) -> LayerRow:
        """The row of the least sum of ranks; of equal ones the more accurate, then the lower layer."""
        order = sorted(zip(self.rank_sums, self.rows, strict=True), key=lambda x: (x[0], -x[1].accuracy, x[1].layer))
        return order[0][1]

    @property
    def noise(self) -> float:
        """Two standard errors of a difference in accuracy between two layers, from how it varies over the folds."""
        others = np.array([row.folds for row in self.rows if row is not self.chosen])
        if not len(others):
            return 0.0
        differences = others - np.array(self.chosen.folds)
        return float(2 * np.sqrt(differences.var(axis=1, ddof=1).mean() / differences.shape[1]))

    def near(self) -> list[LayerRow]:
        """Other layers whose accuracy differs from the chosen one's by no more than the noise."""
        best = self.chosen
        return [r for r in self.rows if r is not best and abs(r.accuracy - best.accuracy) <= self.noise]

    def words(self) -> list[str]:
        """The choice in sentences."""
        best, near = self.chosen, [str(row.layer) for row in self.near()]
        lines = [f"Key layer {best.layer}, by {RULES[self.rule]}."]
        width = f"the noise of the folds ({self.noise:.3f}, two standard errors of a difference)"
        if len(near) == len(self.rows) - 1:
            lines.append(f"No layer's accuracy differs from its by more than {width}: these documents do not tell.")
        elif near:
            lines.append(f"Within {width} of its accuracy: layer{'s' * (len(near) > 1)} {', '.join(near)}.")
        else:
            lines.append(f"No other layer's accuracy is within {width} of its.")
        return [*lines, self._against_default()]

    def _against_default(self) -> str:
        best, default = self.chosen, next(row for row in self.rows if row.layer == self.default)
        if best is default:
            return f"That is the default, layer {self.default} (two thirds of the depth)."
        difference = best.accuracy - default.accuracy
        noise = ", which is noise" if abs(difference) <= self.noise else ""
        leads = f"lead {best.lead or 0.0:.3f} against {default.lead or 0.0:.3f}"
        return (
            f"Against the default, layer {self.default} (two thirds of the depth): accuracy {difference:+.3f}{noise}; "
            f"{leads}{_change(best.auprc, default.auprc)}."
        )

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        ranks = self.rank_sums
        rows = [
            {"layer": r.layer, "accuracy": r.accuracy, "deviation": r.deviation, "folds": r.folds, "auprc": r.auprc,
             "median_lead": r.lead, "rank_sum": rank}
            for r, rank in zip(self.rows, ranks, strict=True)
        ]  # fmt: skip
        return {
            "chosen": self.chosen.layer, "default": self.default, "rule": self.rule, "noise": self.noise,
            "layers": rows, "documents": self.documents, "marked": self.marked, "seconds": self.seconds,
        }  # fmt: skip


def _change(mine: float | None, other: float | None) -> str:
    return "" if mine is None or other is None else f"; AUPRC {mine - other:+.3f}"


def compare_layers(
    data: TextData, folds: int = 3, seed: int = 0, recipe: Recipe | None = None, rule: str | None = None
) -> LayerTable:
    """Cross-validates a selector at every key layer, embeddings included; values come from the layer of the keys.

    Accuracy, lead and AUPRC are those of documents that a selector was not trained on. Training and validation
    documents share the folds, those for tests are not looked at. Hidden states are cached where ``fit`` looks for them,
    so that it encodes none of these again.

    Args:
        data: with training documents.
        folds: of the cross-validation.
        seed: of folds, order and start.
        recipe: of training.
        rule: ``accuracy``, ``accuracy+lead`` or ``accuracy+auprc``; where None the last if people marked words in
            :data:`ENOUGH_MARKED` documents, else ``accuracy``: among layers the lead ranks against AUPRC.

    Raises:
        InputError: as the data do, or the folds are fewer than two or more than documents, or nothing is marked.

    Source: the rules are this package's. The median lead stands in for AUPRC, and is a weak guide among layers: in two
    marked sets of 300 and 600 documents AUPRC went with accuracy, against the lead.

    Example:
        >>> compare_layers(TextData("reviews.csv")).chosen.layer  # doctest: +SKIP
        4
    """
    check_seed(seed, "seed")
    recipe = recipe or Recipe()
    splits, labels = _documents(data)
    marked = sum(map(bool, (r for split in splits for r in split.documents.rationales or ())))
    rule = _checked(len(labels), marked, folds, recipe.epochs, rule)
    layers = range(data.encoder.depth + 1)
    begin = time.perf_counter()
    splits = [_encoded(data, split, layers) for split in splits]
    encoded = time.perf_counter()
    tokens, fold = Tokens(splits, recipe.token_scale), stratified_folds(labels.tolist(), folds, seed)
    start = first_columns(len(layers), folds, len(data.names), data.encoder.dim, seed)
    columns = train_columns(tokens, labels, fold, layers, recipe, start, seed)
    rows = [_row(tokens, labels, fold, layer, columns.p[layer], columns.v[layer]) for layer in layers]
    seconds = {"encoding": encoded - begin, "training": time.perf_counter() - encoded}
    return LayerTable(rows, data.encoder.default_layer, len(labels), marked, seconds, rule)


def _checked(documents: int, marked: int, folds: int, epochs: int, rule: str | None) -> str:
    """The rule, where all these numbers will do."""
    if not 2 <= folds <= documents:
        raise InputError(f"folds: {folds}; expected from 2 to {documents}, the documents")
    if epochs < 1:
        raise InputError(f"epochs: {epochs}; expected a positive number")
    if rule == "accuracy+auprc" and not marked:
        raise InputError("--select: accuracy+auprc needs documents with words that people marked, and there is none")
    return rule or ("accuracy+auprc" if marked >= ENOUGH_MARKED else "accuracy")


def _documents(data: TextData) -> tuple[list[Split], torch.Tensor]:
    """Training and validation documents, and the labels (n,) of all."""
    data.read()
    splits = [data.labelled(name) for name in ("train", "val")]
    return splits, torch.cat([split.labels for split in splits if split.labels is not None])


def _encoded(data: TextData, split: Split, layers: Sequence[int]) -> Split:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(split, hidden=data.encoded(split.documents, layers, device)[1])


def _row(
    tokens: Tokens, labels: torch.Tensor, folds: torch.Tensor, layer: int, p: torch.Tensor, v: torch.Tensor
) -> LayerRow:
    """One layer's numbers on documents held out."""
    right = torch.zeros(len(labels), dtype=torch.bool)
    auprc, lead, norms = RationaleAUPRC(), [], p.norm(dim=1)
    for part in held_out(tokens, folds, layer, p, v):
        right[part.rows] = part.logits.argmax(1) == labels[part.rows]
        lead.append(leads(part.scores / norms[folds[part.rows], None].clamp_min(1e-30), part.mask, 1.0))
        _add_marked(auprc, tokens, part)
    accuracy = [float(right[folds == fold].double().mean()) for fold in folds.unique()]
    all_leads = torch.cat(lead)
    return LayerRow(
        layer, accuracy, float(auprc.compute()) if auprc.documents else None,
        float(all_leads.median()) if len(all_leads) else None,
    )  # fmt: skip


def _add_marked(auprc: RationaleAUPRC, tokens: Tokens, part: Held) -> None:
    for row, attention, mask in zip(part.rows, part.attention, part.mask, strict=True):
        split, i = tokens.place(row)
        scores = word_scores(split, [i], [attention[mask].double().numpy()])
        if scores is not None:
            auprc.update(*scores)
