"""Whether a selector's lead says, without anybody's marks, how good its rationales are: over models, over documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics.rationale import rationale_auprc
from lightning_maxmargin.metrics.selection import entropy
from lightning_maxmargin.probe.text import leads
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.text_columns import Selectors, Training, Units, ask, encode, train
from lightning_maxmargin.reproduce.text_documents import numbers_of, planted, require_corpora, with_distractors
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.columns import Recipe, first_columns, stratified_folds
from lightning_maxmargin.text.pretrained import PretrainedEncoder, pretrained_encoder
from lightning_maxmargin.text.readings import word_weights
from lightning_maxmargin.text.records import Documents, read_documents
from lightning_maxmargin.text.splits import check_labels
from lightning_maxmargin.text.units import marked, sum_by, word_spans

#: What a model is ranked by, and its words.
MEASURES = {"lead": "median lead", "accuracy": "accuracy", "norm": "-‖p‖"}


def require(train: str | None = None, **_: Any) -> None:
    """Asked before any experiment runs.

    Raises:
        InputError: encoder or corpora are not installed.
    """
    require_corpora()


@dataclass(frozen=True)
class Model:
    """One way of training, and what documents held out of it say.

    Attributes:
        layer: of keys and values.
        decay: of p.
        epochs: of training.
        lead: the median over documents of (best score - second)/||p||.
        accuracy: share of documents.
        norm: -||p||, mean over folds.
        auprc: mean over documents of their words' attention against the marks.
    """

    layer: int
    decay: float
    epochs: int
    lead: float
    accuracy: float
    norm: float
    auprc: float


@dataclass(frozen=True)
class Marked:
    """Documents with marked words, in folds.

    Attributes:
        split: n documents, with hidden states.
        labels: (n,) int64.
        folds: (n,) int64.
        classes: labels by name.
        words: (n, u) int64, the word of each unit, -1 for none.
        marks: (n, w) bool.
        mask: (n, w) bool.
    """

    split: Split
    labels: Tensor
    folds: Tensor
    classes: list[str]
    words: Tensor
    marks: Tensor
    mask: Tensor

    @property
    def count(self) -> int:
        """Folds."""
        return int(self.folds.max()) + 1

    def first(self, n: int, seed: int) -> Marked:
        """The first documents, in folds of their own; the split stays that of all."""
        labels, folds = self.labels[:n], stratified_folds(self.labels[:n].tolist(), self.count, seed)
        words, marks, mask = self.words[:n], self.marks[:n], self.mask[:n]
        return replace(self, labels=labels, folds=folds, words=words, marks=marks, mask=mask)


@dataclass(frozen=True)
class Said:
    """What the selector that has not seen a document says of it: n documents each.

    Attributes:
        lead: (n,), NaN of a document without a second unit.
        entropy: (n,) of the attention.
        certainty: (n,), the largest logit less the second: |f| of two classes.
        right: (n,) bool.
        auprc: (n,), NaN of a document without marks.
        selected: (n,) the unit of the highest score.
    """

    lead: Tensor
    entropy: Tensor
    certainty: Tensor
    right: Tensor
    auprc: Tensor
    selected: Tensor


def lead(
    progress: ProgressCallback,
    documents: int = 900,
    fewer: int = 450,
    T: int = 4,
    train: str | None = None,
    layers: Sequence[int] = (2, 4, 6),
    decays: Sequence[float] = (0.25, 1.0, 4.0, 16.0),
    epochs: Sequence[int] = (5, 20),
    default: Sequence[float] = (4, 1.0, 20),
    folds: int = 3,
    distracted: int = 400,
    units: str = "pieces",
    seed: int = 0,
    cache_dir: str | None = None,
) -> Outcome:
    """Trains every model of the grid on folds, and measures each document by the one that has not seen it.

    Args:
        progress: takes the share that is done.
        documents: that are made, or at most read.
        fewer: the first of them, on which all models are trained and ranked once more.
        T: sentences of a document that is made.
        train: a file of your own with ``text``, ``label`` and ``rationale`` in place of what is made.
        layers: of keys and values.
        decays: of p.
        epochs: after which a model is measured.
        default: layer, decay and epochs of the model that documents are looked at one by one with.
        folds: of the cross-validation.
        distracted: documents that get a news sentence put before them.
        units: that are selected, ``pieces`` or ``words``.
        seed: of every draw.
        cache_dir: of hidden states.

    Raises:
        InputError: packages or marks are missing, or numbers do not fit.
    """
    layer, decay, last = int(default[0]), float(default[1]), int(default[2])
    if layer not in layers or decay not in decays or last not in epochs:
        raise InputError(f"reproduce: default {list(default)}; expected one each of layers, decays and epochs")
    if not 2 <= folds <= fewer:
        raise InputError(f"reproduce: folds {folds}, fewer {fewer}; expected two folds or more, and as many documents")
    encoder = pretrained_encoder()
    texts = planted(documents, T, seed) if train is None else _own(train, documents, seed, cache_dir)
    data = _marked(encoder, texts, layers, folds, units, seed, cache_dir)
    progress(0.5)
    # A constant rate: every number of epochs is taken from one run.
    recipe = Recipe(epochs=max(epochs), lr=5e-3, head_decay=0.1, cooldown=0.0)
    models: list[Model] = []
    found: tuple[Said, Selectors] | None = None
    small, few = data.first(fewer, seed), list[Model]()
    for k, at in enumerate(layers):
        held = Units(data.split, at, recipe.token_scale)
        trained = _trained(held, data, decays, epochs, recipe, encoder.dim, seed)
        for e in epochs:
            said = _said(held, data, trained[e])
            models += [_model(data, s, trained[e], d, at, decays[d], e) for d, s in enumerate(said)]
            if (at, e) == (layer, last):
                found = said[decays.index(decay)], _of(trained[e], decays.index(decay), data.count)
        held = held.part(torch.arange(len(small.labels)))
        trained = _trained(held, small, decays, epochs, recipe, encoder.dim, seed)
        for e in epochs:
            said = _said(held, small, trained[e])
            few += [_model(small, s, trained[e], d, at, decays[d], e) for d, s in enumerate(said)]
        progress(0.5 + 0.4 * (k + 1) / len(layers))
    assert found is not None
    numbers = _over_models(models, layer, decay, last)
    numbers |= {f"fewer/{key}": x for key, x in _over_models(few, layer, decay, last).items()}
    own, selectors = found
    rows = torch.arange(min(distracted, len(data.labels)))
    stays = _stays(encoder, data, selectors, own, rows, layer, recipe.token_scale, seed, cache_dir)
    numbers |= _over_documents(own, stays, rows)
    progress(1.0)
    notes = [_ranks(numbers, "", len(data.labels)), _ranks(numbers, "fewer/", len(small.labels))]
    return Outcome(numbers, list(_panels(models, own, stays, rows)), notes + _notes(models, numbers, data))


def _own(source: str, most: int, seed: int, cache_dir: str | None) -> Documents:
    """At most so many documents of a file of the user's; those without marks are trained on as well."""
    found = read_documents(source, cache_dir=cache_dir)
    if not any(found.rationales or ()) or found.labels is None:
        raise InputError(f"reproduce: {source} has no document with a label and a rationale")
    return found.take(np.random.default_rng(seed).permutation(len(found))[:most].tolist())


def _marked(
    encoder: PretrainedEncoder,
    texts: Documents,
    layers: Sequence[int],
    folds: int,
    units: str,
    seed: int,
    cache_dir: str | None,
) -> Marked:
    if units not in ("pieces", "words") or not 2 <= folds <= len(texts):
        raise InputError(f"reproduce: units {units}, folds {folds}; expected pieces or words, and from 2 folds on")
    assert texts.labels is not None
    classes = check_labels(texts.labels)
    labels = numbers_of(texts.labels, classes)
    split = encode(encoder, texts, layers, cache_dir, units)
    rationales = texts.rationales or [None] * len(texts)
    words, marks = [], []
    for i, text in enumerate(texts.texts):
        spans = split.unit_spans(i)
        words.append(torch.from_numpy(word_weights(text, spans, np.zeros(len(spans)))[1]))
        all_words = list(map(tuple, word_spans(text).tolist()))
        marks.append(torch.tensor(marked(all_words, rationales[i] or [], text), dtype=torch.bool))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(x) for x in marks], batch_first=True)
    return Marked(
        split, labels, stratified_folds(labels.tolist(), folds, seed), classes,
        pad(words, batch_first=True, padding_value=-1), pad(marks, batch_first=True), mask,
    )  # fmt: skip


def _trained(
    units: Units, data: Marked, decays: Sequence[float], epochs: Sequence[int], recipe: Recipe, dim: int, seed: int
) -> dict[int, Selectors]:
    """Columns (decays x folds) after each number of epochs."""
    count = len(decays)
    first = first_columns(1, data.count, len(data.classes), dim, seed)
    start = Selectors(first.p[0].repeat(count, 1), first.v[0].repeat(count, 1, 1))
    training = Training(
        labels=data.labels.expand(count * data.count, -1),
        inside=(data.folds != torch.arange(data.count)[:, None]).repeat(count, 1),
        folds=data.folds,
        decay=torch.tensor(decays).repeat_interleave(data.count),
        moves=torch.ones(count * data.count, dtype=torch.bool),
    )
    return train(units, training, start, recipe, seed, keep=epochs)


def _of(selectors: Selectors, d: int, folds: int) -> Selectors:
    """The folds' columns of one decay."""
    at = slice(d * folds, (d + 1) * folds)
    return Selectors(selectors.p[at], selectors.v[at])


def _said(units: Units, data: Marked, selectors: Selectors) -> list[Said]:
    """For each decay what every document is told by the column of its fold."""
    count = len(selectors.p) // data.count
    norms = selectors.p.double().norm(dim=1).clamp_min(1e-30)
    parts: list[list[Said]] = [[] for _ in range(count)]
    for rows, mask, found in ask(units, selectors):
        folds = data.folds[rows]
        for d in range(count):
            at = (d * data.count + folds, torch.arange(len(rows)))
            scores, logits = found.scores[at].double(), found.logits[at]
            attention = scores.masked_fill(~mask, -torch.inf).softmax(1)
            parts[d].append(_one(data, rows, scores / norms[at[0], None], attention, logits, mask))
    names = ("lead", "entropy", "certainty", "right", "auprc", "selected")
    return [Said(*(torch.cat([getattr(part, name) for part in own]) for name in names)) for own in parts]


def _one(data: Marked, rows: Tensor, scores: Tensor, attention: Tensor, logits: Tensor, mask: Tensor) -> Said:
    lead = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    lead[mask.sum(1) > 1] = leads(scores, mask, 1.0)
    words = data.words[rows][:, : mask.shape[1]]
    by_word = sum_by(words, attention, data.marks.shape[1])
    auprc = rationale_auprc(by_word, data.marks[rows], data.mask[rows])
    top = logits.topk(2, dim=1).values
    right = logits.argmax(1) == data.labels[rows]
    selected = scores.masked_fill(~mask, -torch.inf).argmax(1)
    return Said(lead, entropy(attention), top[:, 0] - top[:, 1], right, auprc, selected)


def _model(data: Marked, said: Said, selectors: Selectors, d: int, layer: int, decay: float, epochs: int) -> Model:
    norm = -float(_of(selectors, d, data.count).p.norm(dim=1).mean())
    lead, auprc = float(said.lead.nanmedian()), float(said.auprc.nanmean())
    return Model(layer, decay, epochs, lead, float(said.right.double().mean()), norm, auprc)


def _stays(
    encoder: PretrainedEncoder,
    data: Marked,
    selectors: Selectors,
    said: Said,
    rows: Tensor,
    layer: int,
    length: float,
    seed: int,
    cache_dir: str | None,
) -> Tensor:
    """(m,) bool: whether the unit selected is the same behind a news sentence put before each document."""
    documents, offsets = with_distractors(data.split.documents.take(rows.tolist()), seed)
    split = encode(encoder, documents, [layer], cache_dir, data.split.units)
    stays = []
    for part, mask, found in ask(Units(split, layer, length), selectors):
        scores = found.scores[data.folds[rows[part]], torch.arange(len(part))]
        for i, k in zip(part.tolist(), scores.masked_fill(~mask, -torch.inf).argmax(1).tolist(), strict=True):
            before = data.split.unit_spans(int(rows[i]))[int(said.selected[rows[i]])]
            start, end = split.unit_spans(i)[k]
            stays.append(before == (start - offsets[i], end - offsets[i]))
    return torch.tensor(stays)


# --- numbers --------------------------------------------------------------------------------------------------


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; NaN where one is constant or there are fewer than three.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [5.0, 6.0, 9.0])
        1.0
    """
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return round(float(spearmanr(x, y).statistic), 12)


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The share of pairs of a positive and a negative that the scores order rightly, ties half; NaN without a pair.

    Example:
        >>> auroc(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([False, True, True]))
        1.0
    """
    good = int(positive.sum())
    pairs = good * (len(positive) - good)
    if not pairs:
        return float("nan")
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    return (float(ranks[positive].sum()) - good * (good + 1) / 2) / pairs


def _over_models(models: list[Model], layer: int, decay: float, epochs: int) -> dict[str, float]:
    numbers: dict[str, float] = {"models": len(models)}
    layers = [m for m in models if (m.decay, m.epochs) == (decay, epochs)]
    within = [[m for m in models if m.layer == at] for at in sorted({m.layer for m in models})]
    best = max(m.auprc for m in models)
    auprc = [m.auprc for m in models]
    for name in MEASURES:
        values = [getattr(m, name) for m in models]
        numbers[f"models/{name}"] = rank_correlation(values, auprc)
        inside = [rank_correlation([getattr(m, name) for m in own], [m.auprc for m in own]) for own in within]
        numbers[f"models/{name}/within_layers"] = float(np.mean(inside))
        numbers[f"models/{name}/layers"] = rank_correlation(
            [getattr(m, name) for m in layers], [m.auprc for m in layers]
        )
        numbers[f"models/{name}/regret"] = best - models[int(np.argmax(values))].auprc
    kept = [m for m in models if m.decay < max(m.decay for m in models)]
    for name in MEASURES:
        values = [getattr(m, name) for m in kept]
        numbers[f"models/{name}/without_largest_decay"] = rank_correlation(values, [m.auprc for m in kept])
    both = rankdata([m.accuracy for m in models]) + rankdata([m.lead for m in models])
    numbers["models/accuracy+lead"] = rank_correlation(both.tolist(), auprc)
    numbers["models/accuracy+lead/regret"] = best - models[int(np.argmax(both))].auprc
    numbers |= {"models/auprc/best": best, "models/auprc/worst": min(auprc)}
    own = next(m for m in models if (m.layer, m.decay, m.epochs) == (layer, decay, epochs))
    return numbers | {"default/auprc": own.auprc, "default/accuracy": own.accuracy, "default/lead": own.lead}


def _over_documents(said: Said, stays: Tensor, rows: Tensor) -> dict[str, float]:
    has = ~said.auprc.isnan()
    auprc = said.auprc[has]
    good = auprc > auprc.median()
    several = ~said.lead[rows].isnan()
    numbers = {"documents/stays": float(stays.double().mean())}
    for name in ("lead", "entropy", "certainty"):
        sign = -1.0 if name == "entropy" else 1.0
        values = sign * getattr(said, name).double()
        numbers |= {
            f"documents/{name}/stays": auroc(values[rows][several], stays[several]),
            f"documents/{name}/good": auroc(values[has].nan_to_num(), good),
            f"documents/{name}/auprc": rank_correlation(values[has].nan_to_num().tolist(), auprc.tolist()),
            f"documents/{name}/right": auroc(values.nan_to_num(), said.right),
        }
    return numbers


# --- figure and notes -----------------------------------------------------------------------------------------


def _panels(models: list[Model], said: Said, stays: Tensor, rows: Tensor) -> Iterator[Panel]:
    for name, label in MEASURES.items():
        lines = []
        for layer in sorted({m.layer for m in models}):
            own = [m for m in models if m.layer == layer]
            x, y = (np.array([getattr(m, key) for m in own]) for key in (name, "auprc"))
            lines.append(Line(x, y, f"layer {layer}", None, "dots"))
        yield Panel(f"Models: {label} and AUPRC", label, "AUPRC of marked words", lines)
    several = ~said.lead[rows].isnan()
    yield _deciles(said.lead[rows][several], stays[several].double(), "lead", "selection stays behind a distractor")
    has = ~said.auprc.isnan()
    yield _deciles(said.entropy[has], said.auprc[has], "entropy", "AUPRC")
    yield _deciles(said.certainty, said.right.double(), "|f|", "prediction is right")


def _deciles(x: Tensor, y: Tensor, name: str, what: str) -> Panel:
    """The mean of y in ten parts of documents by x."""
    parts = x.argsort().tensor_split(10)
    across, up = (np.array([float(z[part].double().mean()) for part in parts if len(part)]) for z in (x, y))
    return Panel(f"Documents: {name}, tenths", f"mean {name} of the tenth", what, [Line(across, up)])


def _ranks(numbers: dict[str, float], prefix: str, n: int) -> str:
    found = ", ".join(f"{label} {numbers[f'{prefix}models/{name}']:.2f}" for name, label in MEASURES.items())
    less = numbers[f"{prefix}models/lead/without_largest_decay"]
    return f"{n} documents, rank correlation with AUPRC: {found}; of the lead without the largest decay {less:.2f}."


def _notes(models: list[Model], numbers: dict[str, float], data: Marked) -> list[str]:
    share = float(data.marks.sum() / data.mask.sum())
    lines = [
        f"{len(data.labels)} documents, {share:.3f} of the words marked; {len(models)} models, AUPRC "
        f"{numbers['models/auprc/worst']:.3f} to {numbers['models/auprc/best']:.3f}."
    ]
    for m in models:
        lines.append(
            f"Layer {m.layer}, decay {m.decay:g}, {m.epochs} epochs: accuracy {m.accuracy:.3f}, AUPRC {m.auprc:.3f}, "
            f"median lead {m.lead:.3f}, ‖p‖ {-m.norm:.2f}."
        )
    return lines
