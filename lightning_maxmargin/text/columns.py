"""Many selectors of one form trained at once: a column for every layer and fold, over the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.hidden import HiddenStates
from lightning_maxmargin.text.model import HEAD_STD, scaled_tokens
from lightning_maxmargin.text.rate import cooled


@dataclass(frozen=True)
class Recipe:
    """How every column is trained: as ``configs/text/finetune.yaml`` has it.

    Attributes:
        epochs: over the documents of a fold.
        batch_size: documents a step that a fold trains on.
        lr: of attention and head.
        attention_decay: decoupled weight decay of p.
        head_decay: of v.
        label_smoothing: of the cross entropy.
        token_scale: length of a token.
        cooldown: share of the steps, the last ones, over which the rate falls linearly to zero.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-2
    attention_decay: float = 2.0
    head_decay: float = 0.3
    label_smoothing: float = 0.1
    token_scale: float = 8.0
    cooldown: float = 0.5


class Columns(NamedTuple):
    """Selectors of L layers and F folds with K' heads: one for two classes, else one a class."""

    p: Tensor  # (L, F, d)
    v: Tensor  # (L, F, K', d)


class Answers(NamedTuple):
    """What C selectors say of b documents with up to T units and K classes."""

    scores: Tensor  # (C, b, T)
    attention: Tensor  # (C, b, T)
    logits: Tensor  # (C, b, K)


class Packed(NamedTuple):
    """Units of some documents end to end, and where they stand in a padded batch."""

    tokens: Tensor  # (N, d)
    mask: Tensor  # (b, T) bool


class Located(NamedTuple):
    """Where the pieces of some documents are on disk, whatever the layer."""

    rows: list[tuple[HiddenStates, npt.NDArray[np.int64]]]  # of each split, M pieces in all
    units: Tensor  # (M,) int64, the unit of each piece
    sizes: Tensor  # (N,) pieces of each unit
    mask: Tensor  # (b, T) bool


class Tokens:
    """Scaled units of documents at any cached layer.

    Args:
        splits: with hidden states of all layers in question; documents are numbered through them.
        length: of a token.
    """

    def __init__(self, splits: Sequence[Split], length: float) -> None:
        self.splits, self.length = splits, length
        self._ends = np.cumsum([len(split) for split in splits])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, row: int) -> tuple[Split, int]:
        """The split of a document and its number there."""
        at = int(np.searchsorted(self._ends, row, side="right"))
        return self.splits[at], row - int(self._ends[at]) + len(self.splits[at])

    def locate(self, rows: Sequence[int]) -> Located:
        """The pieces of these documents, which ascend."""
        found: dict[int, tuple[Split, list[npt.NDArray[np.int64]]]] = {}
        units, counts, first = [], [], 0
        for row in rows:
            split, i = self.place(row)
            at, ids = split.pieces.of(i), _units(split, i)
            found.setdefault(id(split), (split, []))[1].append(np.flatnonzero(ids >= 0) + at.start)
            units.append(ids[ids >= 0] + first)
            counts.append(int(ids.max(initial=-1)) + 1)
            first += counts[-1]
        flat, count = torch.from_numpy(np.concatenate(units)), torch.tensor(counts)
        places = [(_hidden(split), np.concatenate(parts)) for split, parts in found.values()]
        mask = torch.arange(max(1, int(count.max()))) < count[:, None]
        return Located(places, flat, torch.bincount(flat, minlength=first), mask)

    def read(self, layer: int, where: Located) -> Packed:
        """Units at this layer: scaled hidden states of pieces, or of the means of a unit's pieces."""
        parts = [torch.from_numpy(hidden.layers[layer][rows]).float() for hidden, rows in where.rows]
        states = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(where.sizes) < len(where.units):
            sums = states.new_zeros(len(where.sizes), states.shape[1]).index_add_(0, where.units, states)
            states = sums / where.sizes[:, None]
        return Packed(scaled_tokens(states, self.length), where.mask)


def _units(split: Split, i: int) -> npt.NDArray[np.int64]:
    """The unit of each piece of a document, -1 for none."""
    at = split.pieces.of(i)
    if split.units != "pieces":
        return split.unit_ids[at].numpy()
    inside = ~split.special[at].numpy()
    return np.where(inside, inside.cumsum() - 1, -1)


def _hidden(split: Split) -> HiddenStates:
    assert split.hidden is not None
    return split.hidden


def answers(packed: Packed, p: Tensor, v: Tensor) -> Answers:
    """Scores, attention and logits by C selectors, as the model's: the keys are read once for all of them.

    Args:
        packed: N units of b documents.
        p: (C, d).
        v: (C, K', d).
    """
    columns, heads = v.shape[:2]
    # One product over the units for all p and v.
    found = (packed.tokens @ torch.cat([p, v.flatten(0, 1)]).T).T
    scores = _padded(found[:columns], packed.mask)
    evidence = _padded(found[columns:], packed.mask).unflatten(0, (columns, heads))
    attention = masked_softmax(scores.flatten(0, 1), packed.mask.repeat(columns, 1)).view_as(scores)
    logits = torch.einsum("cbt,ckbt->cbk", attention, evidence)
    return Answers(scores, attention, torch.cat([-logits, logits], -1) / 2 if heads == 1 else logits)


def _padded(rows: Tensor, mask: Tensor) -> Tensor:
    """(m, N) numbers of units in their places of (m, b, T)."""
    return rows.new_zeros(len(rows), *mask.shape).masked_scatter(mask, rows)


def first_columns(layers: int, folds: int, classes: int, dim: int, seed: int) -> Columns:
    """Where training starts: p at zero and v small, drawn once a fold, the same for every layer."""
    heads = 1 if classes == 2 else classes
    v = HEAD_STD * torch.randn(folds, heads, dim, generator=torch.Generator().manual_seed(seed))
    return Columns(torch.zeros(layers, folds, dim), v.repeat(layers, 1, 1, 1))


def stratified_folds(labels: Sequence[int], folds: int, seed: int) -> Tensor:
    """The fold of each document, (n,) int64: each label is spread evenly, and so are all documents.

    Example:
        >>> stratified_folds([0, 1, 0, 1, 0, 1], 3, seed=0).bincount().tolist()
        [2, 2, 2]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[torch.from_numpy(order)] = torch.arange(len(labels)) % folds
    return fold


def fold_batches(folds: Tensor, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of an epoch, each ascending: with documents of all folds, so that every one trains on ``batch_size``.

    Args:
        folds: (n,) int64, the fold of each document.
        batch_size: documents of a batch outside any one fold.
        seed: of the order.
        epoch: which has its own order.

    Example:
        >>> [len(rows) for rows in fold_batches(torch.arange(12) % 3, 4, seed=0, epoch=0)]
        [6, 6]
    """
    count = int(folds.max()) + 1
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(folds), generator=generator)
    steps = max(1, round(len(folds) * (count - 1) / count / batch_size))
    parts = [order[folds[order] == fold].tensor_split(steps) for fold in range(count)]
    return [torch.cat(step).sort().values for step in zip(*parts, strict=True)]


def train_columns(
    tokens: Tokens, labels: Tensor, folds: Tensor, layers: Sequence[int], recipe: Recipe, start: Columns, seed: int = 0
) -> Columns:
    """Trains the selectors of all layers and folds side by side: the columns share batches and nothing else.

    A column is what :class:`~lightning_maxmargin.TextSelection` would be, trained by AdamW on the documents outside
    its fold in this order. Layers are taken one after the other in a step, so that one layer's units of a batch are in
    memory.

    Args:
        tokens: of n documents.
        labels: (n,) int64.
        folds: (n,) int64, the fold that a document is held out of.
        layers: L of them.
        recipe: of training.
        start: as :func:`first_columns` gives it; not changed.
        seed: of the order of documents.
    """
    p, v = (x.clone().requires_grad_() for x in start)
    groups = [
        {"params": [p], "weight_decay": recipe.attention_decay}, {"params": [v], "weight_decay": recipe.head_decay},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = recipe.epochs * len(fold_batches(folds, recipe.batch_size, seed, 0))
    rate = LambdaLR(optimizer, lambda step: cooled(step, steps, recipe.cooldown))
    for epoch in progress(range(recipe.epochs), desc="training", unit="epoch"):
        for rows in fold_batches(folds, recipe.batch_size, seed, epoch):
            optimizer.zero_grad()
            outside = folds[rows] != torch.arange(start.p.shape[1])[:, None]
            where = tokens.locate(rows.tolist())
            for at, layer in enumerate(layers):
                logits = answers(tokens.read(layer, where), p[at], v[at]).logits
                _loss(logits, labels[rows], outside, recipe.label_smoothing).backward()
            optimizer.step()
            rate.step()
    return Columns(p.detach(), v.detach())


def _loss(logits: Tensor, labels: Tensor, outside: Tensor, smoothing: float) -> Tensor:
    """The sum over folds of the mean cross entropy of the documents (F, b) that each trains on."""
    losses = cross_entropy(
        logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none", label_smoothing=smoothing
    )
    losses = losses.view_as(outside)
    return ((losses * outside).sum(1) / outside.sum(1).clamp_min(1)).sum()


class Held(NamedTuple):
    """What each of b documents is told by the selector that has not seen it."""

    rows: list[int]
    scores: Tensor  # (b, T)
    attention: Tensor  # (b, T)
    logits: Tensor  # (b, K)
    mask: Tensor  # (b, T) bool


@torch.no_grad()
def held_out(tokens: Tokens, folds: Tensor, layer: int, p: Tensor, v: Tensor, batch_size: int = 64) -> Iterator[Held]:
    """Every document by the selector of one layer that it was held out of, batch after batch.

    Args:
        tokens: of n documents.
        folds: (n,) int64.
        layer: of the keys.
        p: (F, d).
        v: (F, K', d).
        batch_size: documents at once.
    """
    for rows in torch.arange(len(tokens)).split(batch_size):
        packed = tokens.read(layer, tokens.locate(rows.tolist()))
        own, at = answers(packed, p, v), (folds[rows], torch.arange(len(rows)))
        yield Held(rows.tolist(), own.scores[at], own.attention[at], own.logits[at], packed.mask)
