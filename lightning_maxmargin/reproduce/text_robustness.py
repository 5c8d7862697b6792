"""A selector beside mean pooling where texts are not what they were in training: distractors, noise, loss, shift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.text_columns import Selectors, Training, Units, encode, predicted, train
from lightning_maxmargin.reproduce.text_documents import (
    LABELS,
    numbers_of,
    require_corpora,
    reviews,
    sentences,
    with_distractors,
    with_words_dropped,
)
from lightning_maxmargin.text.columns import Recipe, first_columns, stratified_folds
from lightning_maxmargin.text.pretrained import PretrainedEncoder, pretrained_encoder
from lightning_maxmargin.text.records import Documents

KINDS = ("selector", "mean")
NAMES = {"selector": "selector p", "mean": "mean pooling (p = 0)"}
COLORS = {"selector": "#0072B2", "mean": "#D55E00"}
#: How what was learned on reviews is used on sentences: whether p and v come from there, and whether p is trained.
WAYS = {"kept": (True, False, False), "tuned": (True, True, True), "scratch": (False, False, True)}
SHIFTED = {"kept": "p kept, head retrained", "tuned": "p and head tuned", "scratch": "from scratch"}


def require(**_: Any) -> None:
    """Asked before any experiment runs.

    Raises:
        InputError: encoder or corpora are not installed.
    """
    require_corpora()


@dataclass(frozen=True)
class Pool:
    """Documents in folds: column k of a kind is trained outside fold k and measured on it.

    Attributes:
        documents: n of them.
        units: theirs.
        labels: (n,) int64.
        folds: (n,) int64.
    """

    documents: Documents
    units: Units
    labels: Tensor
    folds: Tensor

    @property
    def count(self) -> int:
        """Folds."""
        return int(self.folds.max()) + 1

    def first(self, each: int) -> Tensor:
        """The first so many documents of every fold, ascending."""
        rows = [(self.folds == k).nonzero()[:each, 0] for k in range(self.count)]
        return torch.cat(rows).sort().values


class _Encoding:
    """Encoder, layer and settings of all."""

    def __init__(self, layer: int | None, recipe: Recipe, cache_dir: str | None) -> None:
        self.encoder: PretrainedEncoder = pretrained_encoder()
        self.layer = self.encoder.default_layer if layer is None else layer
        self.recipe, self.cache_dir = recipe, cache_dir

    def units(self, documents: Documents) -> Units:
        split = encode(self.encoder, documents, [self.layer], self.cache_dir)
        return Units(split, self.layer, self.recipe.token_scale)

    def pool(self, documents: Documents, folds: int, seed: int) -> Pool:
        labels = numbers_of(documents.labels, list(LABELS.values()))
        return Pool(documents, self.units(documents), labels, stratified_folds(labels.tolist(), folds, seed))

    def start(self, columns: int, folds: int, seed: int) -> Selectors:
        """``columns`` times the same start of each fold."""
        first = first_columns(1, folds, 2, self.encoder.dim, seed)
        return Selectors(first.p[0].repeat(columns, 1), first.v[0].repeat(columns, 1, 1))


def robustness(
    progress: ProgressCallback,
    sentence_documents: int = 2400,
    review_documents: int = 1200,
    characters: int = 600,
    folds: int = 3,
    tested: int = 300,
    noise: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    dropped: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    shift: Sequence[int] = (100, 300, 1000),
    epochs: int = 10,
    attention_decay: float = 2.0,
    layer: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> Outcome:
    """Trains both on the same tokens, one model a fold, and measures each on the documents it has not seen.

    Args:
        progress: takes the share that is done.
        sentence_documents: Rotten Tomatoes sentences.
        review_documents: IMDB reviews.
        characters: of a review, from its beginning.
        folds: models of each kind, each tested on its own part.
        tested: documents of each fold that get a distractor or lose words.
        noise: shares of training labels that are turned.
        dropped: shares of words that test documents lose.
        shift: sentences that a selector of reviews is adapted on.
        epochs: of training.
        attention_decay: of p.
        layer: of keys and values; two thirds of the depth where None.
        seed: of every draw.
        cache_dir: of hidden states.

    Raises:
        InputError: packages are missing, or numbers do not fit.
    """
    if folds < 2 or tested < 1 or epochs < 1 or 0.0 not in noise or 0.0 not in dropped:
        raise InputError("reproduce: expected two folds, one tested document and one epoch or more, and 0 in noise and "
                         "dropped")  # fmt: skip
    if not all(0 < m <= sentence_documents * (folds - 1) // folds for m in shift):
        raise InputError(f"reproduce: shift {list(shift)}; expected numbers up to the sentences outside a fold")
    at = _Encoding(layer, Recipe(epochs=epochs, attention_decay=attention_decay), cache_dir)
    short = at.pool(sentences(sentence_documents, seed), folds, seed)
    progress(0.1)
    long = at.pool(reviews(review_documents, seed, characters), folds, seed)
    progress(0.4)
    by_noise = _trained(at, short, noise, seed)
    of_sentences, of_reviews = by_noise[0.0], _trained(at, long, (0.0,), seed)[0.0]
    progress(0.6)
    numbers: dict[str, float] = {}
    numbers |= _distracted(at, short, of_sentences, tested, "sentences", seed)
    numbers |= _distracted(at, long, of_reviews, tested, "reviews", seed)
    progress(0.8)
    for share, found in by_noise.items():
        numbers |= {f"noise/{kind}/{share:g}": x for kind, x in _accuracies(short, found).items()}
        numbers[f"noise/gain/{share:g}"] = numbers[f"noise/selector/{share:g}"] - numbers[f"noise/mean/{share:g}"]
    for share in dropped:
        numbers |= _lossy(at, short, of_sentences, tested, share, seed)
    for what, last in (("noise", max(noise)), ("dropped", max(dropped))):
        for kind in KINDS:
            numbers[f"{what}/{kind}/lost"] = numbers[f"{what}/{kind}/0"] - numbers[f"{what}/{kind}/{last:g}"]
        numbers[f"{what}/lost/spared"] = numbers[f"{what}/mean/lost"] - numbers[f"{what}/selector/lost"]
    progress(0.9)
    numbers |= _shifted(at, short, long, of_reviews, shift, seed)
    progress(1.0)
    return Outcome(numbers, list(_panels(numbers, noise, dropped, shift)), _notes(numbers, folds, tested, shift))


def _trained(at: _Encoding, pool: Pool, noise: Sequence[float], seed: int) -> dict[float, Selectors]:
    """For each share of turned labels the columns (kinds x folds), all trained together."""
    n, folds = len(pool.labels), pool.count
    turn = torch.rand(n, generator=torch.Generator().manual_seed(seed + 7))
    labels = torch.stack([torch.where(turn < share, 1 - pool.labels, pool.labels) for share in noise])
    each = len(KINDS) * folds
    training = Training(
        labels=labels.repeat_interleave(each, 0),
        inside=(pool.folds != torch.arange(folds)[:, None]).repeat(len(noise) * len(KINDS), 1),
        folds=pool.folds,
        decay=torch.full((len(noise) * each,), at.recipe.attention_decay),
        moves=(torch.arange(each) < folds).repeat(len(noise)),
    )
    start = at.start(len(noise) * len(KINDS), folds, seed)
    found = train(pool.units, training, start, at.recipe, seed)[at.recipe.epochs]
    parts = zip(found.p.split(each), found.v.split(each), strict=True)
    return {share: Selectors(*part) for share, part in zip(noise, parts, strict=True)}


def _own(answers: Tensor, folds: Tensor) -> dict[str, Tensor]:
    """(n,) of each kind: what the column of its own fold says of each document, of (kinds x folds, n)."""
    by_kind = answers.view(len(KINDS), -1, len(folds))
    return {kind: by_kind[k][folds, torch.arange(len(folds))] for k, kind in enumerate(KINDS)}


def _accuracies(pool: Pool, selectors: Selectors) -> dict[str, float]:
    own = _own(predicted(pool.units, selectors), pool.folds)
    return {kind: float((found == pool.labels).double().mean()) for kind, found in own.items()}


def _distracted(at: _Encoding, pool: Pool, selectors: Selectors, tested: int, name: str, seed: int) -> dict[str, float]:
    """Predictions that a news sentence before each document turns, and the accuracy that it costs."""
    rows = pool.first(tested)
    documents, _ = with_distractors(pool.documents.take(rows.tolist()), seed)
    folds, labels = pool.folds[rows], pool.labels[rows]
    before = _own(predicted(pool.units, selectors)[:, rows], folds)
    after = _own(predicted(at.units(documents), selectors), folds)
    numbers: dict[str, float] = {}
    for kind in KINDS:
        right, still = ((x[kind] == labels).double() for x in (before, after))
        flips, key = (before[kind] != after[kind]).double(), f"distractor/{name}"
        numbers |= {
            f"{key}/accuracy/{kind}": float(right.mean()), f"{key}/flips/{kind}": float(flips.mean()),
            f"{key}/lost/{kind}": float((right - still).mean()),
        }  # fmt: skip
        for fold in range(pool.count):
            inside = folds == fold
            numbers[f"{key}/flips/{kind}/{fold}"] = float(flips[inside].mean())
            numbers[f"{key}/lost/{kind}/{fold}"] = float((right - still)[inside].mean())
    spared = {f"distractor/{name}/{x}/spared": f"distractor/{name}/{x}" for x in ("flips", "lost")}
    return numbers | {new: numbers[f"{key}/mean"] - numbers[f"{key}/selector"] for new, key in spared.items()}


def _lossy(at: _Encoding, pool: Pool, selectors: Selectors, tested: int, share: float, seed: int) -> dict[str, float]:
    """Accuracies on documents that lost a share of their words, encoded again."""
    rows = pool.first(tested)
    documents = with_words_dropped(pool.documents.take(rows.tolist()), share, seed)
    own = _own(predicted(at.units(documents), selectors), pool.folds[rows])
    return {f"dropped/{kind}/{share:g}": float((own[kind] == pool.labels[rows]).double().mean()) for kind in KINDS}


def _shifted(
    at: _Encoding, pool: Pool, source: Pool, learned: Selectors, shift: Sequence[int], seed: int
) -> dict[str, float]:
    """Models of reviews on sentences: as they are, and after so many sentences in each of the ways."""
    numbers = {f"shift/as_is/{kind}": x for kind, x in _accuracies(pool, learned).items()}
    numbers |= {f"shift/home/{kind}": x for kind, x in _accuracies(source, learned).items()}
    folds, fresh = pool.count, at.start(1, pool.count, seed)
    p = torch.cat([learned.p[:folds] if known else fresh.p for known, _, _ in WAYS.values()] + [fresh.p])
    v = torch.cat([learned.v[:folds] if known else fresh.v for _, known, _ in WAYS.values()] + [fresh.v])
    moves = torch.tensor([*(moves for *_, moves in WAYS.values()), False]).repeat_interleave(folds)
    for m in shift:
        # Column k is trained outside fold k: on m sentences.
        rows = pool.first(max(1, round(m / (folds - 1))))
        training = Training(
            labels=pool.labels[rows].repeat(len(moves), 1),
            inside=(pool.folds[rows] != torch.arange(folds)[:, None]).repeat(len(WAYS) + 1, 1),
            folds=pool.folds[rows],
            decay=torch.full((len(moves),), at.recipe.attention_decay),
            moves=moves,
        )
        found = train(pool.units.part(rows), training, Selectors(p, v), at.recipe, seed)[at.recipe.epochs]
        labels = predicted(pool.units, found).view(len(WAYS) + 1, folds, -1)
        own = labels[:, pool.folds, torch.arange(len(pool.labels))]
        for way, said in zip([*WAYS, "mean"], own, strict=True):
            numbers[f"shift/{way}/{m}"] = float((said == pool.labels).double().mean())
    for way in ("kept", "tuned"):
        for m, name in ((min(shift), "few"), (max(shift), "many")):
            numbers[f"shift/{way}/over_scratch/{name}"] = numbers[f"shift/{way}/{m}"] - numbers[f"shift/scratch/{m}"]
    numbers["shift/as_is/over_mean"] = numbers["shift/as_is/selector"] - numbers["shift/as_is/mean"]
    return numbers


def _panels(
    numbers: dict[str, float], noise: Sequence[float], dropped: Sequence[float], shift: Sequence[int]
) -> Iterator[Panel]:
    kinds = ["flipped by a distractor", "accuracy lost to it"]
    for name in ("sentences", "reviews"):
        table = np.array([[numbers[f"distractor/{name}/{x}/{kind}"] for x in ("flips", "lost")] for kind in KINDS])
        title = f"A news sentence before each {'review' if name == 'reviews' else 'sentence'} (shares)"
        yield Panel(title, image=table, rows=["selector", "mean"], columns=kinds)
    for what, shares, title, label in (
        ("noise", noise, "Labels turned in training (sentences)", "share of labels"),
        ("dropped", dropped, "Words dropped at test (sentences)", "share of words"),
    ):
        lines = [_line(numbers, f"{what}/{kind}", shares, NAMES[kind], COLORS[kind]) for kind in KINDS]
        yield Panel(title, label, "test accuracy", lines)
    lines = [_line(numbers, f"shift/{way}", shift, label, None) for way, label in SHIFTED.items()]
    lines.append(_line(numbers, "shift/mean", shift, "mean pooling, from scratch", None))
    for kind, label in (("selector", "selector of reviews as it is"), ("mean", "mean pooling of reviews as it is")):
        level = np.full(len(shift), numbers[f"shift/as_is/{kind}"])
        lines.append(Line(np.array(shift), level, label, COLORS[kind], "dotted"))
    yield Panel("From reviews to sentences", "sentences with labels", "test accuracy", lines, log="x")


def _line(numbers: dict[str, float], key: str, at: Sequence[float], label: str, color: str | None) -> Line:
    return Line(np.array(at), np.array([numbers[f"{key}/{x:g}"] for x in at]), label, color)


def _notes(numbers: dict[str, float], folds: int, tested: int, shift: Sequence[int]) -> list[str]:
    def spread(key: str) -> str:
        return " ".join(f"{numbers[f'{key}/{fold}']:.3f}" for fold in range(folds))

    lines = []
    for name in ("sentences", "reviews"):
        for kind in KINDS:
            key = f"distractor/{name}"
            lines.append(
                f"Distractor before {name}, {NAMES[kind]}: accuracy {numbers[f'{key}/accuracy/{kind}']:.3f}, flips of "
                f"each seed {spread(f'{key}/flips/{kind}')}, accuracy lost {spread(f'{key}/lost/{kind}')} "
                f"({tested} documents a seed)."
            )
    for m in shift:
        ways = ", ".join(f"{label} {numbers[f'shift/{way}/{m}']:.3f}" for way, label in SHIFTED.items())
        lines.append(f"Selector of reviews on sentences after {m} of them: {ways}.")
    return lines
