"""Ensembles that move in two more ways: by the gradient itself, and through the factors of W = K Q'."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.instances import InstanceDirections, Instances, instance_directions, scores


class PlainState(EnsembleState):
    """Attention moved by its gradient itself, w <- w - lr grad L: exact where autograd's has long rounded to 0."""

    @torch.no_grad()
    def step(self) -> InstanceDirections:
        """One step of every instance."""
        g = instance_directions(self.data, scores(self.data, self.attention), self._gamma, self.loss, head=False)
        self.attention.add_(g.attention * (self.attention_lr * g.log_attention.exp() / len(self.data.labels)))
        self.steps += 1
        return g


class FactoredState(EnsembleState):
    """W = K Q' through its factors, each by a step of length lr along unit(gradient) + ridge, from Q = 0.

    What :class:`~lightning_maxmargin.optim.FactoredGD` does, for B starts at once.

    Args:
        data: the instances, with queries.
        K: (B, d, m) start.
        head: (dv, B), kept.
        lr: length of every step of each factor.
        ridge: of each factor, beside a gradient of length 1.
    """

    def __init__(self, data: Instances, K: Tensor, head: Tensor, lr: float, ridge: float = 2.22e-16) -> None:
        super().__init__(data, head=head, train="attention", attention_lr=lr)
        assert data.queries is not None
        self.K, self.Q = K.clone(), K.new_zeros(len(K), len(data.queries), K.shape[2])
        self.lr, self.ridge = lr, ridge

    @torch.no_grad()
    def step(self) -> InstanceDirections:
        """One step of every instance."""
        g = instance_directions(self.data, scores(self.data, self.attention), self._gamma, self.loss, head=False)
        G = g.attention.movedim(-1, 0)
        for factor, slope in ((self.K, G @ self.Q), (self.Q, G.mT @ self.K)):
            along = _unit(slope)
            factor.add_(self.lr * torch.where(_length(slope) > 0, _unit(along - self.ridge * factor), along))
        self.attention = (self.K @ self.Q.mT).movedim(0, -1)
        self.steps += 1
        return g


def _length(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    return x / _length(x).clamp_min(torch.finfo(x.dtype).tiny)
