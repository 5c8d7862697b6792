"""What a researcher would write today to train many instances of p under given heads: the naive gradient, by hand.

Normalised steps of rate .1 in float32, the gradient in closed form through an ordinary softmax, compiled by
``torch.compile``, or by JAX with each step of ``lax.map`` training so many instances to the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_maxmargin.core.stack import InstanceStack

RATE = 0.1
Run = Callable[[], object]


def torch_compiled(p: InstanceStack, heads: Tensor, steps: int, instances_last: bool) -> Run:
    """All instances at a time, tokens (d, T, n, B) or (B, n T, d)."""
    B, n, T, d = p.keys.shape
    gamma = (torch.einsum("bntd,bd->bnt", p.keys, heads) * p.labels[..., None]).float()
    if instances_last:
        keys, gamma = p.keys.permute(3, 2, 1, 0).contiguous().float(), gamma.permute(2, 1, 0).contiguous()
    else:
        keys = p.keys.float().flatten(1, 2)

    def last(w: Tensor) -> Tensor:
        s = (keys * w[:, None, None]).sum(0).softmax(0)
        f = (s * gamma).sum(0)
        g = (keys * (s * (gamma - f) * torch.sigmoid(-f))).sum((1, 2))
        return w + RATE * g / g.norm(dim=0)

    def first(w: Tensor) -> Tensor:
        s = torch.bmm(keys, w[..., None]).view(B, n, T).softmax(2)
        f = (s * gamma).sum(2, keepdim=True)
        g = torch.bmm((s * (gamma - f) * torch.sigmoid(-f)).view(B, 1, n * T), keys)[:, 0]
        return w + RATE * g / g.norm(dim=1, keepdim=True)

    step = torch.compile(last if instances_last else first)

    @torch.no_grad()
    def run() -> Tensor:
        w = torch.zeros((d, B) if instances_last else (B, d))
        for _ in range(steps):
            w = step(w)
        return w

    run()
    return run


def jax_mapped(p: InstanceStack, heads: Tensor, steps: int, at_once: int) -> Run:
    """So many instances at a time, each for all steps.

    Raises:
        ImportError: JAX is not installed.
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    data = [jnp.asarray(x.float().numpy()) for x in (p.keys, p.labels, heads)]

    def train(one: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        keys, labels, v = one
        gamma = (keys @ v) * labels[:, None]

        def step(_: int, w: jax.Array) -> jax.Array:
            s = jax.nn.softmax(keys @ w, axis=-1)
            f = (s * gamma).sum(-1, keepdims=True)
            g = jnp.einsum("nt,ntd->d", s * (gamma - f) * jax.nn.sigmoid(-f), keys)
            return w + RATE * g / jnp.linalg.norm(g)

        return jax.lax.fori_loop(0, steps, step, jnp.zeros(keys.shape[-1]))

    whole = jax.vmap(train) if at_once >= len(heads) else lambda x: jax.lax.map(train, x, batch_size=at_once)
    compiled = jax.jit(lambda *x: whole(x))

    def run() -> jax.Array:
        return compiled(*data).block_until_ready()

    run()
    return run


def peers(p: InstanceStack, heads: Tensor, steps: int) -> dict[str, Callable[[], Run]]:
    """What makes each of them: compiled, and run once."""
    return {
        "torch.compile, instances last": lambda: torch_compiled(p, heads, steps, True),
        "torch.compile, instances first": lambda: torch_compiled(p, heads, steps, False),
        "JAX jit, lax.map": lambda: jax_mapped(p, heads, steps, 1),
        "JAX jit, lax.map, 8 at a time": lambda: jax_mapped(p, heads, steps, 8),
        "JAX jit, all at a time": lambda: jax_mapped(p, heads, steps, len(heads)),
    }
