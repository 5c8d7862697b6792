"""What the tests of the mathematics compare with: textbook autograd, mpmath, and small training loops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

from lightning_maxmargin.core import LOSSES, Directions, MarginLoss, Sequences, exact_directions
from lightning_maxmargin.core.attention import naive_pool
from lightning_maxmargin.optim import AcceleratedMargin, NormalizedGD

BINARY = ("logistic", "exponential", "correlation")


def f64(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def margin_loss(name: str) -> MarginLoss:
    loss = LOSSES[name]
    assert isinstance(loss, MarginLoss)
    return loss


def scores_of(data: Sequences, weight: Tensor) -> Tensor:
    """k_it'p, or k_it'W z_i where the data come with queries."""
    if data.queries is None:
        return data.keys @ weight
    return torch.einsum("ntd,de,ne->nt", data.keys, weight, data.queries)


def textbook_loss(data: Sequences, weight: Tensor, v: Tensor, loss: MarginLoss) -> Tensor:
    """Mean loss as every textbook writes it."""
    pooled, _ = naive_pool(scores_of(data, weight), data.values, data.mask)
    return loss(pooled @ v, data.labels).mean()


def textbook_descent(data: Sequences, weight: Tensor, v: Tensor, loss: MarginLoss) -> tuple[Tensor, Tensor]:
    """Minus the autograd gradients with respect to the attention and the head."""
    weight, v = weight.clone().requires_grad_(), v.clone().requires_grad_()
    gradients = torch.autograd.grad(textbook_loss(data, weight, v, loss), (weight, v))
    return -gradients[0], -gradients[1]


def directions(data: Sequences, weight: Tensor, v: Tensor, loss: str) -> Directions:
    return exact_directions(data, scores_of(data, weight), v, margin_loss(loss))


def random_data(
    seed: int, n: int = 4, T: int = 5, d: int = 3, queries: int = 0, mask: bool = False, dv: int = 0
) -> Sequences:
    """Normal tokens in float64; ``queries`` and ``dv`` are dimensions (0: none), the padding of ``mask`` holds 7."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    keys, values = normal(n, T, d), normal(n, T, dv) if dv else None
    labels = torch.randint(2, (n,), generator=g).double() * 2 - 1
    z = normal(n, queries) if queries else None
    real = None
    if mask:
        real = torch.arange(T) < torch.randint(1, T + 1, (n, 1), generator=g)
        keys = keys.masked_fill(~real[..., None], 7.0)
        values = None if values is None else values.masked_fill(~real[..., None], 7.0)
    return Sequences(keys, labels, values=values, queries=z, mask=real)


def saturated(seed: int, norm: float, head_norm: float, queries: bool) -> tuple[Sequences, Tensor, Tensor]:
    """Data, attention and head at which every sequence has one competitor at margin ``norm`` + O(1), others far away.

    So n terms of like size make the gradient, each of them exp(-norm): nothing is trivial and nothing is representable.
    The last token is padding. Labels are random signs, label margins ``head_norm`` + O(1).
    """
    g = torch.Generator().manual_seed(seed)
    n, T, d = 4, 4, 3
    keys = 0.5 * torch.randn(n, T, d, generator=g, dtype=torch.float64)
    labels = f64([1, -1, 1, -1])
    keys[:, 0, 0], keys[:, 1, 0], keys[:, 2, 0], keys[:, 3, 0] = 1.0, 0.0, -1.0, 9.0
    values = 0.5 * torch.randn(n, T, d, generator=g, dtype=torch.float64)
    values[:, 0, 0] = labels
    values[:, 1, 0] = 0.0
    mask = torch.tensor([[True, True, True, False]]).expand(n, T)
    p, v = torch.randn(2, d, generator=g, dtype=torch.float64)
    p[0], v[0] = norm, head_norm
    if not queries:
        return Sequences(keys, labels, values=values, mask=mask), p, v
    z = 0.5 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    z[:, 0] = 1.0
    return Sequences(keys, labels, values=values, queries=z, mask=mask), torch.stack([p, torch.randn_like(p)], 1), v


def with_mpmath(data: Sequences, scores: Tensor, v: Tensor, loss: str) -> dict[str, Tensor]:
    """The fields of Directions in high precision, taking every input number, the scores included, as exact."""
    with mpmath.workdps(60):
        return _with_mpmath(data, scores, v, loss)


def _with_mpmath(data: Sequences, scores: Tensor, v: Tensor, loss: str) -> dict[str, Tensor]:
    keys, values, y = _mp(data.keys), _mp(data.values), _mp(data.labels)
    a, head_weights = _mp(scores), _mp(v)
    n, T, d = data.keys.shape
    z = [[mpf(1)]] * n if data.queries is None else _mp(data.queries)
    real = [[data.mask is None or bool(data.mask[i, t]) for t in range(T)] for i in range(n)]
    G = [[mpf(0)] * len(z[0]) for _ in range(d)]
    H = [mpf(0)] * len(head_weights)
    total, head_total, losses = mpf(0), mpf(0), mpf(0)
    for i in range(n):
        live = [t for t in range(T) if real[i][t]]
        alpha = max(live, key=lambda t: a[i][t])
        e = {t: mpmath.exp(a[i][t] - a[i][alpha]) for t in live}
        s = {t: e[t] / mpmath.fsum(e.values()) for t in live}
        u = {t: mpmath.fsum(x * w for x, w in zip(values[i][t], head_weights, strict=True)) for t in live}
        # Relative to the selected token: in 60 digits f itself would swallow s_t = exp(-6e6).
        drift = mpmath.fsum(s[t] * (u[t] - u[alpha]) for t in live)
        m = y[i] * (u[alpha] + drift)
        value, slope = _loss(loss, m)
        losses += value
        head_total += slope
        for k in range(len(H)):
            H[k] += slope * y[i] * mpmath.fsum(s[t] * values[i][t][k] for t in live)
        # A key with several values pulls nowhere where it is the selected one: its weights are not counted.
        twins = [t for t in live if keys[i][t] == keys[i][alpha]]
        several = any(values[i][t] != values[i][alpha] for t in twins)
        of_keys: dict[tuple, mpf] = {}
        for t in live:
            if t == alpha or (several and t in twins):
                continue
            weight = slope * s[t] * y[i] * (u[t] - u[alpha] - drift)
            of_keys[tuple(keys[i][t])] = of_keys.get(tuple(keys[i][t]), mpf(0)) + weight
            for j in range(d):
                for c in range(len(z[0])):
                    G[j][c] += weight * (keys[i][t][j] - keys[i][alpha][j]) * z[i][c]
        # The selected one's own weight is minus the sum of the others.
        total += (mpmath.fsum(map(abs, of_keys.values())) + abs(mpmath.fsum(of_keys.values()))) / 2
    attention = f64([[float(x / total) if total > 0 else 0.0 for x in row] for row in G])
    return {
        "attention": attention[:, 0] if data.queries is None else attention,
        "head": f64([float(x / head_total) for x in H]),
        "log_attention": f64(float(mpmath.log(total / n)) if total > 0 else -torch.inf),
        "log_head": f64(float(mpmath.log(head_total / n))),
        "log_loss": f64(float(mpmath.log(losses / n)) if losses > 0 else float("nan")),
    }


def _loss(name: str, m: mpf) -> tuple[mpf, mpf]:
    """l(m) and |l'(m)|."""
    if name == "correlation":
        return -m, mpf(1)
    if name == "exponential":
        return mpmath.exp(-m), mpmath.exp(-m)
    # log1p: 1 + exp(-6e6) is 1 in 60 digits.
    return mpmath.log1p(mpmath.exp(-m)), 1 / (1 + mpmath.exp(m))


def _mp(x: Tensor) -> list:
    """Nested lists of exact numbers."""

    def convert(item: object) -> object:
        return [convert(i) for i in item] if isinstance(item, list) else mpf(item)

    return convert(x.double().tolist())  # type: ignore[return-value]


class Meeting:
    """Reduce for threads that play processes: each brings its part, all leave with the maximum or the sum."""

    def __init__(self, parties: int) -> None:
        self.parts: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(parties, timeout=30)

    def max(self, x: Tensor) -> Tensor:
        return self._meet(x).amax(0)

    def sum(self, x: Tensor) -> Tensor:
        return self._meet(x).sum(0)

    def _meet(self, x: Tensor) -> Tensor:
        self.parts[threading.get_ident()] = x
        self.barrier.wait()
        parts = torch.stack(list(self.parts.values()))
        self.barrier.wait()
        return parts


def sharded(shards: Sequence[Sequences], weight: Tensor, v: Tensor, loss: str) -> list[Directions]:
    """What every one of the processes that hold these shards computes."""
    meeting = Meeting(len(shards))
    answers: dict[int, Directions] = {}

    def work(rank: int, data: Sequences) -> None:
        answers[rank] = exact_directions(data, scores_of(data, weight), v, margin_loss(loss), meeting)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[rank] for rank in range(len(shards))]


def train_exact(
    data: Sequences,
    p: Sequence[float],
    v: Sequence[float],
    steps: Sequence[int],
    *,
    joint: bool = True,
    loss: str = "logistic",
    accelerated: bool = False,
) -> dict[int, tuple[Tensor, Tensor]]:
    """(p, v) after each of ``steps`` by exact gradients: NGD with lr .1, or AcceleratedMargin with lr 1."""
    w, h = torch.nn.Parameter(f64(p)), torch.nn.Parameter(f64(v))
    make: Callable = AcceleratedMargin if accelerated else NormalizedGD
    optimizer = make([w, h] if joint else [w])
    seen = {}
    for step in range(1, max(steps) + 1):
        with torch.no_grad():
            d = exact_directions(data, data.keys @ w, h, margin_loss(loss))
        w.grad, h.grad = -d.attention, -d.head
        optimizer.step()
        if step in steps:
            seen[step] = (w.detach().clone(), h.detach().clone())
    return seen


def cosine(u: Tensor, w: Sequence[float]) -> float:
    u, b = u.double(), f64(w)
    return float(u @ b / u.norm() / b.norm())
