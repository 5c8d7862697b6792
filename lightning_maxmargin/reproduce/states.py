"""Ensembles that move in two more ways: by the gradient itself, and through the factors of W = K Q'."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances, scores
from lightning_maxmargin.core.batch_directions import InstanceDirections, instance_directions
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.norms import unit
from lightning_maxmargin.core.updates import Factored

EPS = torch.finfo(torch.float64).eps


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
    """W = K Q' through its factors from Q = 0, each by a step of length lr of its own.

    By default along unit(gradient) + ridge, as :class:`~lightning_maxmargin.optim.FactoredGD` does. With ``in_loss``
    the ridge is a part of the loss, as in the public experiment: L + ridge (||K||^2 + ||Q||^2) / 2, so that W stops
    growing where the loss is as small.

    Args:
        data: the instances, with queries.
        K: (B, d, m) start.
        head: (dv, B), kept.
        lr: length of every step of each factor.
        ridge: of each factor; beside a gradient of length 1, or with ``in_loss`` beside the gradient as it is.
        in_loss: as above.
    """

    def __init__(
        self, data: Instances, K: Tensor, head: Tensor, lr: float, ridge: float = EPS, in_loss: bool = False
    ) -> None:
        super().__init__(data, head=head, train="attention", attention_lr=lr)
        assert data.queries is not None
        self.K, self.Q = K.clone(), K.new_zeros(len(K), len(data.queries), K.shape[2])
        self.lr, self.ridge, self.in_loss = lr, ridge, in_loss

    @torch.no_grad()
    def step(self) -> InstanceDirections:
        """The exact direction of W, by the chain rule that of K and Q, one step of each."""
        g = instance_directions(self.data, scores(self.data, self.attention), self._gamma, self.loss, head=False)
        G = g.attention.movedim(-1, 0)
        # -grad L = exp(log_attention) / n G. Beside a ridge of 2e-16 what underflows here is nothing.
        scale = (g.log_attention.exp() / len(self.data.labels))[:, None, None]
        for factor, slope in ((self.K, G @ self.Q), (self.Q, G.mT @ self.K)):
            if self.in_loss:
                factor.add_(torch.vmap(unit)(scale * slope - self.ridge * factor), alpha=self.lr)
            else:
                factor.copy_(torch.vmap(self._along)(factor, -slope))
        self.attention = (self.K @ self.Q.mT).movedim(0, -1).contiguous()
        self.steps += 1
        return g

    def _along(self, factor: Tensor, gradient: Tensor) -> Tensor:
        return Factored(self.ridge).step(factor, gradient, self.lr, {}, self.steps)[0]
