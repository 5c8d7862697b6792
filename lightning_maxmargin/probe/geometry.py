"""The norm of each part of a model: whose margin its optimizer maximises, and how long the part is in it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_maxmargin.core import TokenSelector


class Norms(NamedTuple):
    """Of attention and head, as ``solve_att_svm`` and ``solve_label_svm`` take them."""

    attention: str | float = "l2"
    head: str | float = "l2"

    @property
    def is_euclidean(self) -> bool:
        """Whether both are l2."""
        return all(norm in ("l2", 2) for norm in self)

    def of(self, model: TokenSelector) -> Norms:
        """Those of this model's parts: a vector has no singular values, so that a norm of these is l2 there.

        Example:
            >>> Norms("spectral", "linf").of(TokenSelector(3, parametrization="p"))
            Norms(attention='l2', head='linf')
        """
        head = model.head if model.linear else model.direction[..., 0]
        return Norms(_of(self.attention, model.direction), _of(self.head, head))


EUCLIDEAN = Norms()


def _of(norm: str | float, x: Tensor) -> str | float:
    from lightning_maxmargin.svm.norms.registry import is_of_matrices

    return "l2" if norm == 2 or (x.ndim == 1 and is_of_matrices(norm)) else norm


class Sizes(NamedTuple):
    """||p|| or ||W||, and ||v|| or None of a nonlinear head, each in its own norm."""

    attention: float
    head: float | None

    @classmethod
    def of(cls, model: TokenSelector, norms: Norms) -> Sizes:
        return cls(size_of(model.direction, norms.attention), size_of(model.head, norms.head) if model.linear else None)

    @property
    def ratio(self) -> float | None:
        """rho = ||v|| / ||p||."""
        return self.head / self.attention if self.head is not None and self.attention > 0 else None


def size_of(x: Tensor, norm: str | float) -> float:
    """||x|| in float64."""
    from lightning_maxmargin.svm import norm_of

    return float(x.norm()) if norm == "l2" else norm_of(x, norm)
