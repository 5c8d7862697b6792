"""Next-token prediction by self-attention: W held against the graph SVM and the finite part of its components."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Array, Line, Panel, percentiles
from lightning_maxmargin.reproduce.paths import log_steps
from lightning_maxmargin.reproduce.token_graph import KINDS, Kind, Limits, TokenGraphs, draw_graphs, frequencies, limits

LABELS = {"acyclic": "acyclic", "whole": "whole components", "parts": "parts of components"}
COLORS = {"acyclic": "#0072B2", "whole": "#D55E00", "parts": "#009E73"}
# Singular values of the span's rows below this share of the largest are rounding.
RANK = 1e-11
# In the figure.
DOTS = 400


class NextToken:
    """W of B data sets under the loss -log of the attention on the label's tokens, from 0.

    Args:
        graphs: the data sets.
    """

    def __init__(self, graphs: TokenGraphs) -> None:
        B, _, d = graphs.embeddings.shape
        self.graphs, self.steps = graphs, 0
        self.W = torch.zeros(B, d, d, dtype=torch.float64)
        self._momentum = torch.zeros_like(self.W)
        self._span = _spans(graphs)

    def in_span(self, G: Tensor) -> Tensor:
        """The part of G (B, d, d) in the cyclic subspace, the span of (x_o - x_t) z_i' over tokens that are kept."""
        return (self._span @ (self._span.mT @ G.flatten(1)[..., None])).view_as(G)

    def log_attention(self) -> Tensor:
        """log s, (B, n, T)."""
        return self.graphs.scores(self.W).log_softmax(2)

    def loss(self) -> Tensor:
        """(B,), the mean over sequences."""
        on_label = self.graphs.tokens == self.graphs.labels[..., None]
        return -self.log_attention().masked_fill(~on_label, -torch.inf).logsumexp(2).mean(1)

    def gradient(self, log_s: Tensor) -> Tensor:
        """d loss / dW: the mean over sequences of sum_t s_it (x_it - x_i,label) z_i'."""
        return self.graphs.pulled(log_s.exp() / log_s.shape[1])

    def outside(self, log_s: Tensor) -> Tensor:
        """The gradient's direction orthogonal to the cyclic subspace, exact at any norm of W.

        What tokens kept contribute lies in that subspace; the weights of the others, divided by their sum over all
        sequences, are formed from logarithms.
        """
        weights = log_s.masked_fill(self.graphs.kept, -torch.inf).flatten(1).softmax(1).view_as(log_s)
        g = self.graphs.pulled(weights)
        # Twice, for the rounding of the first.
        for _ in range(2):
            g = g - self.in_span(g)
        return g

    def split_step(self, lr: float, rate: float) -> None:
        """Gradient descent at ``rate`` in the cyclic subspace, dual acceleration at ``lr`` outside it."""
        log_s = self.log_attention()
        g = self.outside(log_s)
        self._momentum = (self._momentum + g) * (self.steps / (self.steps + 1))
        self.W = self.W - lr * (self._momentum + g) - rate * self.in_span(self.gradient(log_s))
        self.steps += 1

    def plain_step(self, rate: float) -> None:
        """Gradient descent."""
        self.W = self.W - rate * self.gradient(self.log_attention())
        self.steps += 1


def _spans(graphs: TokenGraphs) -> Tensor:
    """Orthonormal bases of the cyclic subspaces, (B, d d, r), filled up with zeros."""
    found = []
    for b, (tokens, last, labels) in enumerate(zip(graphs.tokens, graphs.last, graphs.labels, strict=True)):
        E = graphs.embeddings[b]
        ends = torch.stack([tokens, labels[:, None].expand_as(tokens), last[:, None].expand_as(tokens)], dim=2)
        x, y, z = ends[graphs.kept[b]].unique(dim=0).T
        U, size, _ = torch.linalg.svd(torch.einsum("md,me->dem", E[x] - E[y], E[z]).flatten(0, 1), full_matrices=False)
        found.append(U[:, size > RANK * size[0].clamp_min(RANK)].T)
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True).mT


def next_token(
    progress: ProgressCallback,
    seeds: int = 20,
    vocabulary: int = 9,
    d: int = 16,
    n: int = 200,
    T: int = 6,
    block: int = 3,
    steps: int = 3000,
    lr: float = 1.0,
    rate: float = 9.0,
    seed: int = 0,
) -> Outcome:
    """Trains W on data of every kind of :func:`draw_graphs`, by split steps and by plain gradient descent.

    Args:
        seeds: data sets of each kind.
        vocabulary: tokens.
        d: dimensions.
        n: sequences.
        T: tokens of each.
        block: of the vocabulary.
        steps: of training.
        lr: of dual acceleration outside the cyclic subspace.
        rate: of gradient descent, in that subspace and everywhere.
        seed: of the first data set.

    Returns:
        By kind, the largest over the seeds: ``gap/KIND``, 1 - cos of W outside the cyclic subspace with W_dir;
        ``finite/KIND``, ||W in it - W_fin|| over ||W_fin||, or over 1; ``combined/KIND``, 1 - cos of W with
        W_fin + R W_dir; ``outside/KIND``, attention outside the component of the label; ``inside/KIND``, how far the
        attention within it, which sums to 1, is from W_fin's, ``frequency/whole`` from the shares in which its tokens
        follow; ``loss/KIND``, how far from the smallest. ``order/KIND``, the smallest ratio over the seeds of the gap
        to W_dir to that to W_fin + R W_dir; ``norm/KIND``, the median of W's. All as ``plain/...`` for gradient
        descent. ``several/KIND``, share of sequences that keep several tokens; ``certified``, 1 if every SVM is.
    """
    numbers: dict[str, float] = {}
    runs: list[_Run] = []
    at, notes = log_steps(steps)[::4], []
    for kind in KINDS:
        graphs = draw_graphs(kind, seeds, vocabulary, d, n, T, block, seed)
        limit = limits(graphs)
        for plain in (False, True):
            run = _Run(kind, plain, NextToken(graphs), limit)
            run.follow(at, lr, rate)
            numbers |= {f"{run.prefix}{key}/{kind}": x for key, x in run.measured().items()}
            runs.append(run)
            progress(len(runs) / len(KINDS) / 2)
        several = (graphs.kept & (graphs.tokens != graphs.labels[..., None])).any(2).double().mean()
        numbers |= {f"several/{kind}": float(several), f"certified/{kind}": float(limit.certified)}
        notes.append(_note(numbers, kind, seeds))
    numbers["certified"] = min(numbers[f"certified/{kind}"] for kind in KINDS)
    return Outcome(numbers, _panels(runs, at), notes)


@dataclass
class _Run:
    """Data of a kind trained in one of the two ways; ``gap`` and ``finite`` (k, B) on the way."""

    kind: Kind
    plain: bool
    model: NextToken
    limit: Limits
    gap: Array = field(default_factory=lambda: np.zeros(0))
    finite: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def prefix(self) -> str:
        return "plain/" if self.plain else ""

    def follow(self, at: Array, lr: float, rate: float) -> None:
        """Trains to the last of these steps and measures at each."""
        seen = []
        for step in at.tolist():
            while self.model.steps < step:
                self.model.plain_step(rate) if self.plain else self.model.split_step(lr, rate)
            seen.append(self._missing())
        self.gap, self.finite = (np.array(x) for x in zip(*seen, strict=True))

    def _missing(self) -> tuple[list[float], list[float]]:
        W, F = self.model.W, self.limit.finite
        inner = self.model.in_span(W)
        finite = _norm(inner - F) / _norm(F).clamp_min(1)
        return _gaps(W - inner, self.limit.direction), finite.tolist()

    def measured(self) -> dict[str, float]:
        """The keys of :func:`next_token`, at the end."""
        graphs, W, D, F = self.model.graphs, self.model.W, self.limit.direction, self.limit.finite
        R = ((W - F) * D).sum((1, 2)) / D.square().sum((1, 2))
        combined = np.array(_gaps(W, F + R[:, None, None] * D))
        log_s = self.model.log_attention()
        kept = log_s.masked_fill(~graphs.kept, -torch.inf)
        inside = kept.softmax(2)
        found = {
            "gap": self.gap[-1].max(),
            "finite": self.finite[-1].max(),
            "combined": combined.max(),
            "order": (np.array(_gaps(W, D)) / combined).min(),
            "outside": log_s.masked_fill(graphs.kept, -torch.inf).exp().sum(2).max(),
            "inside": (inside - self.limit.inside).abs().max(),
            "loss": (self.model.loss() - self.limit.loss).abs().max(),
            "norm": _norm(W).median(),
        }
        if self.kind == "whole":
            found["frequency"] = (inside - frequencies(graphs)).abs().max()
        return {key: float(x) for key, x in found.items()}


def _norm(W: Tensor) -> Tensor:
    return W.flatten(1).norm(dim=1)


def _gaps(W: Tensor, targets: Tensor) -> list[float]:
    found = (direction_gap(w, target) for w, target in zip(W, targets, strict=True))
    return [float("nan") if gap is None else gap for gap in found]


def _panels(runs: list[_Run], at: Array) -> list[Panel]:
    gaps, finites, dots = [], [], [Line(np.array([0, 1]), np.array([0, 1]), "equal", "0.6", "dashed")]
    for run in runs:
        look = (LABELS[run.kind] + (", GD" if run.plain else ""), COLORS[run.kind], "dashed" if run.plain else "line")
        gaps.append(percentiles(at, run.gap, *look))
        if run.kind == "acyclic":
            continue
        finites.append(percentiles(at, run.finite, *look))
        if not run.plain:
            kept = run.model.graphs.kept
            s = run.model.log_attention().masked_fill(~kept, -torch.inf).softmax(2)
            x, y = run.limit.inside[kept].numpy(), s[kept].numpy()
            at_most = np.unique(np.linspace(0, len(x) - 1, DOTS).astype(int))
            dots.append(Line(x[at_most], y[at_most], LABELS[run.kind], COLORS[run.kind], "dots"))
    return [
        Panel("W outside the cyclic subspace, and W_dir", "step", "1 − cos", gaps, "xy"),
        Panel("W in the cyclic subspace, and W_fin", "step", "distance / ‖W_fin‖", finites, "xy"),
        Panel("attention inside a component", "predicted by the data", "at the last step", dots),
    ]


def _note(numbers: dict[str, float], kind: str, seeds: int) -> str:
    return (
        f"{LABELS[kind]}: {seeds} data sets, {numbers[f'several/{kind}']:.0%} of the sequences keep several tokens; "
        f"median norm of W {numbers[f'norm/{kind}']:.3g}, by gradient descent {numbers[f'plain/norm/{kind}']:.3g}"
    )
