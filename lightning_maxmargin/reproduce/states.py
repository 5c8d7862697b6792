"""Ensembles that move in two more ways: by the gradient itself, and through the factors of W = K Q'."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.core.batch_directions import InstanceDirections
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.norms import unit
from lightning_maxmargin.core.updates import Factored
from lightning_maxmargin.reproduce.problems import Problems

EPS = torch.finfo(torch.float64).eps


class PlainState(EnsembleState):
    """Moved by the gradient itself, w <- w - lr grad L: exact where autograd's has long rounded to 0.

    Plain gradient descent is no rule of this package: it is here to be compared with.
    """

    def move(self, g: InstanceDirections) -> None:
        gradients = dict(zip(("attention", "head"), g.of_log_loss(), strict=True))
        for name in self.trained:
            x, rate = gradients[name], getattr(self, f"{name}_lr")
            assert x is not None
            getattr(self, name).add_(x * g.loss * rate)


class FactoredState(EnsembleState):
    """W = K Q' through its factors from Q = 0, each by a step of length lr of its own.

    By default along unit(gradient) + ridge, as :class:`~lightning_maxmargin.optim.FactoredGD` does. With ``in_loss``
    the ridge is a part of the loss, as in the public experiment: L + ridge (||K||^2 + ||Q||^2) / 2, so that W stops
    growing where the loss is as small.

    Args:
        drawn: instances with queries; their heads are kept.
        K: (B, d, m) start.
        lr: length of every step of each factor.
        ridge: of each factor; beside a gradient of length 1, or with ``in_loss`` beside the gradient as it is.
        in_loss: as above.
    """

    def __init__(self, drawn: Problems, K: Tensor, lr: float, ridge: float = EPS, in_loss: bool = False) -> None:
        super().__init__(drawn.batch(), head=drawn.heads.T, train="attention")
        assert drawn.queries is not None
        self.K, self.Q = K.clone(), K.new_zeros(len(K), drawn.queries.shape[2], K.shape[2])
        self.lr, self.ridge, self.in_loss = lr, ridge, in_loss

    def move(self, g: InstanceDirections) -> None:
        """By the chain rule the direction of W gives that of K and Q: one step of each."""
        G = g.attention.movedim(-1, 0)
        # -grad L = exp(log_attention) / n G. Beside a ridge of 2e-16 what underflows here is nothing.
        scale = (g.log_attention.exp() / len(self.data.labels))[:, None, None]
        for factor, slope in ((self.K, G @ self.Q), (self.Q, G.mT @ self.K)):
            if self.in_loss:
                factor.add_(torch.vmap(unit)(scale * slope - self.ridge * factor), alpha=self.lr)
            else:
                factor.copy_(torch.vmap(self._along)(factor, -slope))
        self.attention = (self.K @ self.Q.mT).movedim(0, -1).contiguous()

    def _along(self, factor: Tensor, gradient: Tensor) -> Tensor:
        return Factored(self.ridge).step(factor, gradient, self.lr, {}, self.steps)[0]
