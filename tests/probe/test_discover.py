"""Attention layers of any make are found, reproduced or left out with the reason."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.discover import Discovery, find_attention, read_found
from tests.conftest import ROOT

N, T, D, H = 3, 6, 32, 4


@pytest.fixture(scope="module")
def zoo() -> Any:
    """scripts/auto_heads.py, whose table is in docs/transformers.md."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("auto_heads")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def heads(x: Tensor) -> Tensor:
    return x.view(N, T, H, -1).transpose(1, 2)


class Block(nn.Module):
    """Attention as users write it: ``attend`` is the part that differs."""

    def __init__(self, attend: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.key, self.query, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        for name, part in parts.items():
            setattr(self, name, part)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(self, x).transpose(1, 2).reshape(N, T, -1))


def three(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads(m.query(x)), heads(m.key(x)), heads(m.value(x))


def eager(m: Any, x: Tensor) -> Tensor:
    """As minGPT: masked by -inf."""
    q, k, v = three(m, x)
    scores = (q @ k.transpose(-2, -1)) * D**-0.5
    return scores.masked_fill(torch.ones(T, T).tril() == 0, -torch.inf).softmax(-1) @ v


def sdpa(m: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*three(m, x), scale=0.3)


def fused(m: Any, x: Tensor) -> Tensor:
    """As vit-pytorch: one projection, nn.Softmax, dropout."""
    q, k, v = (heads(t) for t in m.to_qkv(x).chunk(3, -1))
    return F.dropout(m.softmax(torch.matmul(q, k.mT) * 0.5), 0.5, m.training) @ v


def interleaved(m: Any, x: Tensor) -> Tensor:
    """As GPT-NeoX: queries, keys and values of a head beside one another."""
    q, k, v = m.to_qkv(x).view(N, T, H, -1).transpose(1, 2).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def keys_with_values(m: Any, x: Tensor) -> Tensor:
    k, v = m.to_kv(x).chunk(2, -1)
    return F.scaled_dot_product_attention(heads(m.query(x)), heads(k), heads(v))


def einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in three(m, x))
    s = torch.einsum("bqhd,bkhd->bhqk", q / 2, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", s, v).transpose(1, 2)


def tokens_first(m: Any, x: Tensor) -> Tensor:
    """As fairseq: (T, n, d), and heads within the batch."""
    q, k, v = (p(x.transpose(0, 1)).view(T, N * H, -1).transpose(0, 1) for p in (m.query, m.key, m.value))
    return (torch.bmm(q * 0.4, k.transpose(1, 2)).softmax(-1) @ v).view(N, H, T, -1)


def one_head(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.query(x), m.key(x), m.value(x)
    return (torch.softmax(q @ k.mT / 5, -1) @ v)[:, None]


def complex_rotary(m: Any, x: Tensor) -> Tensor:
    """As the first Llama: neighbours are a complex number."""
    angles = torch.outer(torch.arange(T), 10000 ** (-torch.arange(4) / 4))
    unit = torch.polar(torch.ones(T, 4), angles)[:, None]

    def turn(t: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.reshape(N, T, H, 4, 2))
        return torch.view_as_real(pairs * unit).flatten(3).transpose(1, 2)

    return F.scaled_dot_product_attention(turn(m.query(x)), turn(m.key(x)), heads(m.value(x)), is_causal=True)


def divided(m: Any, x: Tensor) -> Tensor:
    """As Qwen3: each head's queries and keys over their root mean square, with gains."""
    q, k, v = three(m, x)
    return F.scaled_dot_product_attention(m.q_norm(q), m.k_norm(k.transpose(1, 2)).transpose(1, 2), v)


QKV = {"to_qkv": nn.Linear(D, 3 * D, bias=False), "softmax": nn.Softmax(-1)}
FOUND = {
    "eager and causal": (eager, {}), "scaled": (sdpa, {}), "fused": (fused, QKV), "interleaved": (interleaved, QKV),
    "keys with values": (keys_with_values, {"to_kv": nn.Linear(D, 2 * D)}), "einsum": (einsum, {}),
    "tokens first": (tokens_first, {}), "one head": (one_head, {}), "complex rotary": (complex_rotary, {}),
    "normalised": (divided, {"q_norm": nn.RMSNorm(8), "k_norm": nn.RMSNorm(8)}),
    "key of a chain": (sdpa, {"key": nn.Sequential(nn.Linear(D, 5), nn.Linear(5, D))}),
}  # fmt: skip


def normalised(m: Any, x: Tensor) -> Tensor:
    q, k, v = three(m, x)
    return F.scaled_dot_product_attention(m.q_norm(q), m.k_norm(k), v)


def cosine(m: Any, x: Tensor) -> Tensor:
    q, k, v = three(m, x)
    return (10 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v


def bent(m: Any, x: Tensor) -> Tensor:
    q, k, v = three(m, x)
    return F.scaled_dot_product_attention(q.relu(), k.relu(), v)


def capped(m: Any, x: Tensor) -> Tensor:
    q, k, v = three(m, x)
    return torch.tanh(q @ k.mT).softmax(-1) @ v


def biased(m: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*three(m, x), attn_mask=(torch.arange(T) / 9)[None])


def over_queries(m: Any, x: Tensor) -> Tensor:
    """As slot attention: queries compete for tokens."""
    q, k, v = three(m, x)
    return (q @ k.mT).softmax(-2) @ v


def in_place(m: Any, x: Tensor) -> Tensor:
    """What the projection returned is written over: by value it is still the projection's."""
    q, k, v = m.query(x), m.key(x), m.value(x)
    q *= 3
    return F.scaled_dot_product_attention(heads(q), heads(k), heads(v))


def of_parameters(m: Any, x: Tensor) -> Tensor:
    q, k = heads(x @ m.value.weight), heads(x @ m.key.weight)
    return F.scaled_dot_product_attention(q, k, q)


LEFT_OUT = {
    "its queries and keys are normalised (q_norm, k_norm)": (
        normalised, {"q_norm": nn.LayerNorm(8), "k_norm": nn.LayerNorm(8)},
    ),
    "'key' (Sequential) is not affine": (sdpa, {"key": nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D))}),
    "are no columns, nor rotated columns, of what its submodules return (query, key, value)": (cosine, {}),
    "nor rotated columns": (bent, {}),
    "its scores are not x'W z: between the product of queries and keys and softmax they change by": (capped, {}),
    "(a position bias, a cap)": (biased, {}),
    "recomputed from its inputs and weights, its attention differs by up to": (in_place, {}),
    "but from parameters": (of_parameters, {}),
    "computes no attention in its forward pass": (over_queries, {}),
}  # fmt: skip


def block(attend: Any, parts: dict[str, nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = Block(attend, **parts)
    for p in module.parameters():
        # Drawn so small that attention would be even whatever is computed.
        nn.init.normal_(p, std=0.4)
    for norm in (m for m in module.modules() if isinstance(m, nn.RMSNorm)):
        nn.init.uniform_(norm.weight, 0.5, 3)
    return module, torch.randn(N, T, D)


@pytest.mark.parametrize("name", FOUND)
def test_blocks_of_ones_own_are_found_and_reproduced(name: str) -> None:
    module, x = block(*FOUND[name])
    found = find_attention(module, lambda: module(x), "all")
    assert list(found.sources) == [""]
    assert found.differences[""] < 1e-5
    assert found.left_out == {}
    assert module.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_no_xwz_is_left_out_in_words(reason: str) -> None:
    module, x = block(*LEFT_OUT[reason])
    with pytest.raises(InputError) as raised:
        find_attention(module, lambda: module(x))
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_module_without_attention() -> None:
    module = nn.Sequential(nn.Linear(D, D), nn.Softmax(-1))
    with pytest.raises(InputError, match="Sequential computes no attention in its forward pass"):
        find_attention(module, lambda: module(torch.randn(N, T, D)))


def test_a_kernel_that_is_not_seen_is_named() -> None:
    class FlashAttention(Block):
        pass

    torch.manual_seed(0)
    module = nn.Sequential(Block(sdpa), FlashAttention(lambda m, x: heads(m.value(x))))
    found = find_attention(module, lambda: module(torch.randn(N, T, D)))
    assert list(found.sources) == ["0"]
    assert "uses a kernel of its own" in found.left_out["1"]
    assert [row.split()[0] for row in str(found).splitlines()] == ["0", "1"]


def test_a_layer_that_runs_twice_is_two() -> None:
    torch.manual_seed(0)
    layer = Block(sdpa)
    module = nn.Sequential(layer, nn.Identity(), layer)
    x = torch.randn(N, T, D)
    found = find_attention(module, lambda: module(x))
    assert list(found.sources) == ["0@0", "0@1"]
    readings = read_found(module, found.sources, lambda: module(x), "auto", N)
    first, second = readings["0@0"], readings["0@1"]
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert torch.equal(first.keys, x)
    assert not torch.equal(second.keys, x)


def test_layers_by_pattern_and_the_nearest_name() -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, D, batch_first=True), 3)
    x = torch.randn(N, T, D)

    def kept(layers: str) -> list[str]:
        return list(find_attention(module, lambda: module(x), layers=layers).sources)

    assert kept("layers.[0-1].*") == ["layers.0.self_attn", "layers.1.self_attn"]
    assert kept("[1-2].*") == ["layers.1.self_attn", "layers.2.self_attn"]
    assert kept("2.self") == ["layers.2.self_attn"]
    with pytest.raises(InputError, match=r"no watched layer is called 'layer.1.attn'; the closest is 'layers.1.self"):
        kept("layer.1.attn")


def test_compiled_modules_are_seen_as_they_were_written() -> None:
    module, x = block(sdpa, {})
    compiled = torch.compile(module, backend="eager")
    compiled(x)
    found = find_attention(compiled, lambda: compiled(x))
    assert list(found.sources) == [""]
    assert found.differences[""] < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    for attend in (sdpa, eager):
        module, x = block(attend, {})
        module, x = module.to(dtype), x.to(dtype)
        found = find_attention(module, lambda module=module, x=x: module(x))  # type: ignore[misc]
        assert found.differences[""] < (0.05 if dtype.itemsize == 2 else 1e-12)


def test_a_layer_that_changes_says_so() -> None:
    class Grows(nn.Module):
        """Swin: a bias by position that starts at zero."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bias = Block(self.attend), nn.Parameter(torch.zeros(T))

        def attend(self, m: Any, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*three(m, x), attn_mask=self.bias[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    torch.manual_seed(0)
    module, x = Grows(), torch.randn(N, T, D)
    found = find_attention(module, lambda: module(x))
    nn.init.normal_(module.bias)
    why = read_found(module, found.sources, lambda: module(x), "auto", N)["inner"]
    assert isinstance(why, str)
    assert "a position bias" in why


FAST = ("Qwen3", "BERT", "GPT-2", "Llama, 2 of 4 key heads", "Mistral, a sliding window of 3", "ViT", "ALBERT")
TORCH = ("torch TransformerEncoder", "torch TransformerEncoder, causal", "torch MultiheadAttention")


@pytest.mark.parametrize("name", [*FAST, *TORCH])
def test_the_heads_of_transformers_are_their_own_attention(zoo: ModuleType, name: str) -> None:
    pytest.importorskip("transformers")
    found = zoo.measure(name)
    assert isinstance(found.discovery, Discovery), found.discovery
    assert len(found.discovery.sources) == (1 if name.endswith("MultiheadAttention") else 2)
    assert found.discovery.left_out == {}
    assert found.difference < 1e-5


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_is_found(zoo: ModuleType) -> None:
    document = Path(ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    for name, found in zoo.rows():
        assert zoo.line(name, found) in document
        assert (found.difference or 0.0) < zoo.ALLOWED
