"""Spectral and nuclear norm of the working rows in their semidefinite form, which ``conic`` solves.

``||W||_2 <= t`` is ``[[t I, W], [W', t I]] >= 0`` (positive semidefinite), and ``||W||_*`` is the smallest half trace
of ``[[P, W], [W', Q]] >= 0``: each norm is the other's multiplier. Both problems read

    min c'y  subject to  X = C + sum_k y_k A_k >= 0,  s = B y - h >= 0,

with multipliers Y >= 0 and lam >= 0. Spectral: y = (W, t). Nuclear: y are the multipliers of the rows and W = 2 Y_12,
so that the system has one unknown for each working row; as rows are ``delta z'`` it costs m^2 d, not m^2 d^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import missed_share
from lightning_maxmargin.svm.rows import Array


class Semidefinite(ABC):
    """Unit rows ``delta_i z_i'`` (m, d) and (m, dq), right-hand sides b (m,), the largest 1."""

    c: Array

    def __init__(self, delta: Array, z: Array, b: Array) -> None:
        self.delta, self.z, self.b = delta, z, b
        self.d, self.dq = delta.shape[1], z.shape[1]

    def rows(self, W: Array) -> Array:
        """<row, W> (m,)."""
        return np.einsum("md,md->m", self.delta @ W, self.z)

    def combine(self, lam: Array) -> Array:
        """sum lam row (d, dq)."""
        return (self.delta * lam[:, None]).T @ self.z

    def embed(self, W: Array, diagonal: float) -> Array:
        """[[a I, W], [W', a I]]."""
        X = diagonal * np.eye(self.d + self.dq)
        X[: self.d, self.d :] = W
        X[self.d :, : self.d] = W.T
        return X

    @abstractmethod
    def start(self, W: Array, lam: Array) -> tuple[Array, Array, Array, Array]:
        """y, s, Y, lam near the Frobenius solution."""

    @abstractmethod
    def matrix(self, y: Array) -> Array:
        """X."""

    @abstractmethod
    def adjoint(self, Y: Array, lam: Array) -> Array:
        """<A_k, Y> + (B'lam)_k."""

    @abstractmethod
    def linear(self, y: Array) -> Array:
        """B y - h."""

    @abstractmethod
    def schur(self, inverse: Array, Y: Array, weight: Array) -> Array:
        """<A_k, Y A_l X^-1> + B' diag(weight) B."""

    @abstractmethod
    def answer(self, y: Array, Y: Array, lam: Array) -> tuple[Array, Array]:
        """W and the multipliers of the rows."""

    def gap_of(self, W: Array, lam: Array) -> float:
        """1 - dual / primal, free of scale; or what rows b = 0 miss."""
        on, margins = self.b > 0, self.rows(W)
        smallest, combined = float((margins[on] / self.b[on]).min()), self.dual_norm(self.combine(lam))
        gap = relative_gap(float(self.b @ lam), combined, smallest, self.norm(W), 1)
        return max(gap, missed_share(margins[~on], np.full(int((~on).sum()), np.linalg.norm(W))))

    @abstractmethod
    def norm(self, W: Array) -> float: ...

    @abstractmethod
    def dual_norm(self, M: Array) -> float: ...


class Nuclear(Semidefinite):
    """min -b'y s.t. [[I, -M], [-M', I]] >= 0, M = sum y row, y >= 0."""

    def __init__(self, delta: Array, z: Array, b: Array) -> None:
        super().__init__(delta, z, b)
        self.c = -b

    def start(self, W: Array, lam: Array) -> tuple[Array, Array, Array, Array]:
        y = lam + lam.mean()
        y = y * (0.8 / np.linalg.norm(self.combine(y), 2))
        W = 1.2 * W
        slack = np.maximum(self.rows(W) - self.b, 0.1)
        return y, y.copy(), self.embed(0.5 * W, 0.6 * float(np.linalg.norm(W, 2))), slack

    def matrix(self, y: Array) -> Array:
        return self.embed(-self.combine(y), 1.0)

    def adjoint(self, Y: Array, lam: Array) -> Array:
        return lam - 2 * self.rows(Y[: self.d, self.d :])

    def linear(self, y: Array) -> Array:
        return y

    def schur(self, inverse: Array, Y: Array, weight: Array) -> Array:
        d, D, Z = self.d, self.delta, self.z
        S = D @ Y[:d, :d] @ D.T
        S *= Z @ inverse[d:, d:] @ Z.T
        term = D @ inverse[:d, :d] @ D.T
        term *= Z @ Y[d:, d:] @ Z.T
        S += term
        term = D @ Y[:d, d:] @ Z.T
        term *= Z @ inverse[d:, :d] @ D.T
        S += term
        S += term.T
        S.ravel()[:: len(S) + 1] += weight
        return S

    def answer(self, y: Array, Y: Array, lam: Array) -> tuple[Array, Array]:
        return 2 * Y[: self.d, self.d :], y

    def norm(self, W: Array) -> float:
        return float(np.linalg.svd(W, compute_uv=False).sum())

    def dual_norm(self, M: Array) -> float:
        return float(np.linalg.norm(M, 2))


class Spectral(Semidefinite):
    """min t s.t. [[t I, W], [W', t I]] >= 0, <row, W> >= b."""

    def __init__(self, delta: Array, z: Array, b: Array) -> None:
        super().__init__(delta, z, b)
        self.c = np.append(np.zeros(self.d * self.dq), 1.0)
        self.A = (delta[:, :, None] * z[:, None, :]).reshape(len(b), -1)

    def start(self, W: Array, lam: Array) -> tuple[Array, Array, Array, Array]:
        W = 1.5 * W
        lam = lam + 0.1 * lam.mean()
        M = self.combine(lam)
        share = 1 / (self.d + self.dq)
        size = share / float(np.linalg.norm(M, 2))
        slack = np.maximum(self.rows(W) - self.b, 0.1)
        y = np.append(W.ravel(), 1.5 * np.linalg.norm(W, 2))
        return y, slack, self.embed(-0.5 * size * M, share), size * lam

    def matrix(self, y: Array) -> Array:
        return self.embed(y[:-1].reshape(self.d, self.dq), float(y[-1]))

    def adjoint(self, Y: Array, lam: Array) -> Array:
        return np.append(2 * Y[: self.d, self.d :].ravel() + lam @ self.A, np.trace(Y))

    def linear(self, y: Array) -> Array:
        return self.A @ y[:-1] - self.b

    def schur(self, inverse: Array, Y: Array, weight: Array) -> Array:
        d, dq = self.d, self.dq
        k = d * dq
        S = np.empty((k + 1, k + 1))
        half = self.A * np.sqrt(weight)[:, None]
        box = (half.T @ half).reshape(d, dq, d, dq)
        box += Y[:d, None, :d, None] * inverse[None, d:, None, d:]
        box += inverse[:d, None, :d, None] * Y[None, d:, None, d:]
        box += Y[:d, None, None, d:] * inverse[:d, d:].T[None, :, :, None]
        box += inverse[:d, None, None, d:] * Y[:d, d:].T[None, :, :, None]
        S[:k, :k] = box.reshape(k, k)
        product = Y @ inverse
        S[k, :k] = S[:k, k] = (product[:d, d:] + product[d:, :d].T).ravel()
        S[k, k] = np.trace(product)
        return S

    def answer(self, y: Array, Y: Array, lam: Array) -> tuple[Array, Array]:
        return y[:-1].reshape(self.d, self.dq), lam

    def norm(self, W: Array) -> float:
        return float(np.linalg.norm(W, 2))

    def dual_norm(self, M: Array) -> float:
        return float(np.linalg.svd(M, compute_uv=False).sum())
