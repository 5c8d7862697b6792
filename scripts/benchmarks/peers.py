"""Other solvers on explicit rows: ``min .5||p||^2  subject to  D p >= 1``, D (m, d); each returns p (d,)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Peer = Callable[[Array], Array]


def daqp(D: Array) -> Array:
    """Dual active set."""
    import daqp as library

    m, d = D.shape
    sense, upper = np.zeros(m, np.int32), np.full(m, 1e30)
    return np.asarray(library.solve(np.eye(d), np.zeros(d), D, upper, np.ones(m), sense, primal_tol=1e-9)[0])


def quadprog(D: Array) -> Array:
    """Goldfarb-Idnani."""
    import quadprog as library

    m, d = D.shape
    return np.asarray(library.solve_qp(np.eye(d), np.zeros(d), D.T, np.ones(m))[0])


def piqp(D: Array) -> Array:
    """Proximal interior point."""
    import piqp as library

    m, d = D.shape
    solver = library.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-9
    solver.setup(np.eye(d), np.zeros(d), None, None, D, np.ones(m), np.full(m, 1e30))
    solver.solve()
    return np.asarray(solver.result.x)


def cvxopt(D: Array) -> Array:
    """Interior point on the primal."""
    from cvxopt import matrix

    m, d = D.shape
    return _cvxopt(matrix(np.eye(d)), matrix(np.zeros(d)), matrix(-D), matrix(-np.ones(m)))


def cvxopt_dual(D: Array) -> Array:
    """Interior point on the dual, with the Gram of the rows."""
    from cvxopt import matrix

    m = len(D)
    lam = _cvxopt(matrix(D @ D.T), matrix(-np.ones(m)), matrix(-np.eye(m)), matrix(np.zeros(m)))
    return lam @ D


def _cvxopt(P: Any, q: Any, G: Any, h: Any) -> Array:
    from cvxopt import solvers

    options = {"show_progress": False, "abstol": 1e-10, "reltol": 1e-9, "feastol": 1e-9}
    return np.asarray(solvers.qp(P, q, G, h, options=options)["x"]).ravel()


def clarabel(D: Array) -> Array:
    """Clarabel through cvxpy."""
    import cvxpy as cp

    p = cp.Variable(D.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cp.Problem(cp.Minimize(cp.sum_squares(p) / 2), [D @ p >= 1]).solve(solver=cp.CLARABEL)
    return np.asarray(p.value)


def svc(D: Array) -> Array:
    """scikit-learn's SVC; each row also mirrored, so that the best intercept is 0."""
    from sklearn.svm import SVC

    found = SVC(kernel="linear", C=1e8, tol=1e-6, cache_size=1000).fit(np.vstack([D, -D]), _two(D))
    return np.asarray(found.coef_[0])


def linear_svc(D: Array) -> Array:
    """scikit-learn's LinearSVC without intercept."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(loss="hinge", C=1e4, tol=1e-6, fit_intercept=False, max_iter=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(model.fit(np.vstack([D, -D]), _two(D)).coef_[0])


def liblinear(x: Array, y: npt.NDArray[np.int64]) -> Array:
    """LIBLINEAR's Crammer-Singer through scikit-learn, without intercept, of samples (n, d) and classes; V (K, d)."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(multi_class="crammer_singer", C=1e4, tol=1e-6, fit_intercept=False, max_iter=100_000)
    return np.asarray(model.fit(x, y).coef_)


def _two(D: Array) -> Array:
    return np.repeat([1.0, -1.0], len(D))


def shortfall(D: Array, p: Array, best: float) -> float:
    """1 - (margin of p / best margin)^2, what the certified gap of p is against the certified optimum."""
    length = float(np.linalg.norm(p))
    return 1 - (float((D @ p).min()) / length / best) ** 2 if length > 0 else 1.0
