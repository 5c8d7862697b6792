"""W and its factors on random data: each converges to its own solution, Frobenius or nuclear, of what it selected."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.instances import Instances, contract, instance_directions, scores
from lightning_maxmargin.core.losses import LOSSES, MarginLoss
from lightning_maxmargin.reproduce.ensembles import Drawn, Speed, draw
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.textbook import TextbookEnsemble

NORMS = {"l2": "Frobenius", "nuclear": "nuclear"}
EPS = torch.finfo(torch.float64).eps


class FactoredEnsemble:
    """B instances of W = K Q', each factor moved by its own unit step as :class:`FactoredGD` moves one.

    Args:
        data: instances with queries.
        head: (d, B), given.
        K: (B, d, m) start; Q starts at zero.
        lr: the Frobenius length of each step of each factor.
        ridge: beside a gradient of length 1.
    """

    def __init__(self, data: Instances, head: Tensor, K: Tensor, lr: float = 0.1, ridge: float = EPS) -> None:
        assert data.queries is not None
        loss = LOSSES["logistic"]
        assert isinstance(loss, MarginLoss)
        self.data, self.loss, self.lr, self.ridge = data, loss, lr, ridge
        self.K = K.to(data.keys).clone()
        self.Q = K.new_zeros(len(K), len(data.queries), K.shape[2]).to(data.keys)
        self._token_values = contract(head.to(data.keys), data.values)

    @property
    def attention(self) -> Tensor:
        """W, (d, dq, B)."""
        return (self.K @ self.Q.mT).movedim(0, -1)

    def step(self) -> None:
        """The exact direction of W, by the chain rule that of K and Q, one step of each."""
        a = scores(self.data, self.attention.contiguous())
        G = instance_directions(self.data, a, self._token_values, self.loss, head=False).attention.movedim(-1, 0)
        of_K, of_Q = G @ self.Q, G.mT @ self.K
        for factor, g in ((self.K, of_K), (self.Q, of_Q)):
            # The ridge pulls against the direction, which is minus the gradient. Zero gradients move nothing.
            step = _unit(_unit(g) - self.ridge * factor)
            factor.add_(torch.where(g.any(2, keepdim=True).any(1, keepdim=True), step, 0.0), alpha=self.lr)


def _unit(g: Tensor) -> Tensor:
    tiny = torch.finfo(g.dtype).tiny
    g = g / g.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
    return g / g.norm(dim=(1, 2), keepdim=True).clamp_min(tiny)


def local_convergence(
    tick: Tick, n: int = 6, T: int = 8, d: int = 10, seeds: int = 100, steps: int = 2000, lr: float = 0.1
) -> Outcome:
    """Trains W, and K and Q, from the start of TFSVM; correlations with both solutions of the tokens selected last.

    Args:
        tick: told the share done.
        n: sequences.
        T: tokens.
        d: dimensions of tokens, queries and the factors' columns.
        seeds: 0, 1, ...
        steps: normalised.
        lr: of W, K and Q.

    Returns:
        ``cos/MODEL/NORM/STEP``, ``mass/MODEL/STEP`` (mean over sequences of the largest attention), each the mean over
        seeds with ``deviation/...``, at 1,000 steps and at the end, and ``naive/...`` by textbook float32 for W.
    """
    drawn, at = draw(seeds, n, T, d, queries=True), np.unique([*np.geomspace(10, steps, 24).astype(int), 1000, steps])
    at, speed, numbers = at[at <= steps], Speed(), {}
    paths: dict[str, list[Tensor]] = {}
    notes, lines = [], {"cos": [], "mass": []}
    for model in ("W", "KQ", "naive"):
        with speed.training(drawn, steps if model != "naive" else 0):
            paths[model] = _path(drawn, model, at, lr)
        tick(len(paths) / 4)
    for model, path in paths.items():
        curves, words = _measure(drawn, path)
        prefix, name = ("naive/", "W") if model == "naive" else ("", model)
        notes += [f"{model}: {words}"] if not prefix else []
        for key, values in curves.items():
            kind, _, norm = key.partition("/")
            full = f"{kind}/{name}" + (f"/{norm}" if norm else "")
            for step in {1000, steps} & set(at.tolist()):
                x = values[at == step][0]
                numbers[f"{prefix}{full}/{step}"] = float(np.nanmean(x))
                numbers[f"{prefix}deviation/{full}/{step}"] = float(np.nanstd(x))
            if not prefix:
                lines[kind].append(_line(at, values, f"{name}, {NORMS[norm]}" if norm else name, name, norm))
    panels = [
        Panel("correlation with the two solutions", "step", "mean over seeds", lines["cos"], "x", ylim=(0.5, 1.02)),
        Panel("largest attention of a sequence", "step", "mean over seeds", lines["mass"], "x"),
    ]
    return Outcome(numbers, panels, notes, speed.steps, speed.ratio)
