"""Next-token data, their graphs and limits, and W trained on them: against autograd, counts and the graph SVM."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.next_token import NextToken, next_token
from lightning_maxmargin.reproduce.token_graph import KINDS, components, draw_graphs, frequencies, limits

SMALL: dict[str, Any] = {"vocabulary": 6, "d": 8, "n": 60, "T": 4, "block": 2}


def trained(kind: Any, steps: int) -> NextToken:
    model = NextToken(draw_graphs(kind, 3, **SMALL))
    for _ in range(steps):
        model.split_step(1.0, 6.0)
    return model


def autograd(model: NextToken) -> torch.Tensor:
    """The gradient of -log of the attention on the label's tokens, as the paper has it."""
    graphs, W = model.graphs, model.W.clone().requires_grad_()
    keys, queries = (torch.stack(x) for x in zip(*(graphs.instance(b) for b in range(len(W))), strict=True))
    s = torch.einsum("bntd,bde,bne->bnt", keys, W, queries).softmax(2)
    on_label = (s * (graphs.tokens == graphs.labels[..., None])).sum(2)
    return torch.autograd.grad(-on_label.log().mean(1).sum(), W)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_and_its_part_outside_the_span_are_those_of_autograd(kind: Any) -> None:
    model = trained(kind, 20)
    wanted, log_s = autograd(model), model.log_attention()
    torch.testing.assert_close(model.gradient(log_s), wanted, rtol=1e-9, atol=1e-13)
    outside = wanted - model.in_span(wanted)
    scale = log_s.exp().masked_fill(model.graphs.kept, 0).sum((1, 2)) / log_s.shape[1]
    torch.testing.assert_close(model.outside(log_s) * scale[:, None, None], outside, rtol=1e-7, atol=1e-12)


def test_outside_the_span_the_direction_is_exact_where_the_gradient_has_underflown() -> None:
    model = trained("whole", 0)
    D = limits(model.graphs).direction
    model.W = 2000 * D
    log_s = model.log_attention()
    gradient = model.gradient(log_s)
    assert float((gradient - model.in_span(gradient)).abs().max()) < 1e-14
    g = model.outside(log_s)
    # At W_dir only its support has weight, whose rows all have margin 1: a step along it raises all of them alike.
    torch.testing.assert_close(-(g * D).sum((1, 2)), torch.ones(3, dtype=torch.float64))


def test_components_are_those_of_each_last_token() -> None:
    tokens = torch.tensor([[0, 1], [1, 0], [2, 0], [0, 1], [1, 2]])
    found = components(tokens, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1]), 3)
    # 0 <-> 1, 2 -> 0 under last token 0; 0 -> 1 -> 2 under last token 1.
    assert found[0][0] == found[0][1]
    assert found[0].unique().numel() == 2
    assert found[1].unique().numel() == 3


def test_without_cycles_only_the_label_is_kept() -> None:
    graphs = draw_graphs("acyclic", 3, **SMALL)
    assert torch.equal(graphs.kept, graphs.tokens == graphs.labels[..., None])
    assert not limits(graphs).finite.any()


def test_the_finite_part_is_where_the_loss_within_components_is_least() -> None:
    for kind in ("whole", "parts"):
        model = trained(kind, 0)
        found = limits(model.graphs)
        assert found.certified
        # The gradient of the sequences cut down to what they keep is 0 there.
        assert float(model.graphs.pulled(found.inside).abs().max()) < 1e-9
        model.W = found.finite
        s = model.log_attention().masked_fill(~model.graphs.kept, -torch.inf).softmax(2)
        torch.testing.assert_close(s, found.inside, rtol=1e-9, atol=1e-12)
        # It lies in the span, to which W_dir is orthogonal.
        torch.testing.assert_close(model.in_span(found.finite), found.finite, rtol=1e-9, atol=1e-12)
        assert float(model.in_span(found.direction).abs().max()) < 1e-8


def test_in_whole_components_tokens_follow_as_often_as_they_are_attended() -> None:
    graphs = draw_graphs("whole", 3, **SMALL)
    torch.testing.assert_close(limits(graphs).inside, frequencies(graphs), rtol=1e-9, atol=1e-12)


def test_instances_do_not_depend_on_the_batch() -> None:
    many, one = draw_graphs("parts", 3, **SMALL), draw_graphs("parts", 1, seed=2, **SMALL)
    assert torch.equal(many.tokens[2], one.tokens[0])
    model, alone = NextToken(many), NextToken(one)
    for _ in range(50):
        model.split_step(1.0, 6.0)
        alone.split_step(1.0, 6.0)
    torch.testing.assert_close(model.W[2], alone.W[0])


def test_both_parts_are_found() -> None:
    found = next_token(lambda _: None, seeds=2, steps=1500, rate=6.0, **SMALL)
    for kind in KINDS:
        assert found.numbers[f"gap/{kind}"] < 1e-4
        assert found.numbers[f"finite/{kind}"] < 1e-6
        assert found.numbers[f"loss/{kind}"] < 1e-12
        assert found.numbers[f"plain/gap/{kind}"] > 10 * found.numbers[f"gap/{kind}"]
    assert found.numbers["several/acyclic"] == 0
    assert found.numbers["plain/order/whole"] > 1
    assert [len(panel.lines) for panel in found.panels] == [6, 4, 3]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [("cyclic", {}, "none of acyclic"), ("whole", {"vocabulary": 8}, "blocks of 3"), ("parts", {"d": 5}, "d is 5")],
)
def test_settings_that_do_not_fit_are_refused(kind: Any, options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        draw_graphs(kind, 1, **options)
