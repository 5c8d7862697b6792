"""Products of tokens in any dtype, a piece at a time, are those of a copy in float64."""

from __future__ import annotations

import pytest
import torch

from lightning_maxmargin.core import products as module
from lightning_maxmargin.core.products import products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("piece", [1, 7, 8, 1000])
def test_products_of_pieces(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS_IN_CACHE", piece)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 5, 4, generator=g).to(dtype), torch.randn(2, 4, generator=g, dtype=torch.float64)
    torch.testing.assert_close(products(x, w), torch.einsum("ntd,cd->cnt", x.double(), w), rtol=1e-14, atol=1e-14)
    # Transposed, as mapped files may be.
    turned = x.transpose(0, 1)
    torch.testing.assert_close(products(turned, w), products(x, w).transpose(1, 2), rtol=1e-14, atol=1e-14)


def test_derivatives_of_products() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(products, (x, w))
    assert torch.autograd.gradgradcheck(products, (x, w))
    narrow = x.detach().to(torch.float16)
    weight = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    (got,) = torch.autograd.grad((products(narrow, w) * weight).sum(), w)
    torch.testing.assert_close(got, torch.einsum("cnt,ntd->cd", weight, narrow.double()))
    each = torch.vmap(products, in_dims=(0, None))(torch.stack([x, 2 * x]), w)
    torch.testing.assert_close(each[1], 2 * products(x, w))
