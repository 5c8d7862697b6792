"""The model in its three parametrisations and three kinds of query."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.core import LOSSES, CrossEntropy, Sequences, TokenSelector, exact_directions
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import AcceleratedMargin, NormalizedGD
from tests.core.exact_reference import BINARY, directions, f64, margin_loss, random_data, scores_of

PROMPT = [2.0, -1.0, 2.0]  # of length 3
UNIT = f64(PROMPT) / 3


def build(dim: int = 3, **arguments: Any) -> TokenSelector:
    """In float64, as numbers are read: a model built in float32 would round its prompt."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return TokenSelector(dim, **arguments)
    finally:
        torch.set_default_dtype(before)


def fill(model: TokenSelector, seed: int = 0) -> TokenSelector:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model


def shared(parametrization: str, p: Tensor, v: Tensor) -> TokenSelector:
    """W z = p in each parametrisation."""
    model = build(parametrization=parametrization, prompt=PROMPT, head_init=v.tolist())
    with torch.no_grad():
        if parametrization == "p":
            model.p.copy_(p)
        elif parametrization == "W":
            model.W.copy_(torch.outer(p, UNIT))
        else:
            model.K.copy_(torch.outer(p, f64([1, 2, 2]) / 9))
            model.Q.copy_(torch.outer(UNIT, f64([1, 2, 2])))
    return model


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("pooling", ["centred", "naive"])
def test_parametrisations_agree_where_they_mean_the_same(pooling: Any, mask: bool) -> None:
    data, p, v = random_data(1, mask=mask), f64([1, -2, 0.5]), f64([0.3, 1, -1])
    outputs = []
    for parametrization in ("p", "W", "KQ"):
        model = shared(parametrization, p, v)
        torch.testing.assert_close(model.direction.detach(), p, rtol=1e-15, atol=1e-15)
        outputs.append(model(data, pooling))
    torch.testing.assert_close(outputs[0].scores, data.keys @ p)
    for output in outputs[1:]:
        for got, want in zip(output, outputs[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parametrization", ["W", "KQ"])
@pytest.mark.parametrize("query", ["own", "separate"])
def test_queries_of_the_sequence(query: Any, parametrization: Any) -> None:
    data = random_data(2, queries=2)
    model = fill(build(parametrization=parametrization, query=query, query_dim=2, own_token=1, rank=2))
    z = data.keys[:, 1] if query == "own" else data.queries
    assert z is not None
    W = model.matrix.detach()
    assert W.shape == (3, 3 if query == "own" else 2)
    if parametrization == "KQ":
        assert torch.equal(W, (model.K @ model.Q.T).detach())
    for i in range(len(data)):
        for t in range(data.keys.shape[1]):
            want = float(data.keys[i, t] @ W @ z[i])
            assert model(data).scores[i, t].item() == pytest.approx(want, rel=1e-12, abs=1e-13)
    assert torch.equal(model.direction, model.matrix)


def test_logits_by_hand() -> None:
    data = random_data(3, dv=2)
    model = fill(build(parametrization="p", value_dim=2))
    output = model(data)
    p, v = model.p.detach(), model.v.detach()
    s = (data.keys @ p).softmax(1)
    for i in range(len(data)):
        f = sum(float(s[i, t]) * float(data.values[i, t] @ v) for t in range(5))
        assert output.logits[i].item() == pytest.approx(f, rel=1e-12)
    torch.testing.assert_close(output.attention, s, rtol=1e-13, atol=1e-15)


def test_multiclass_head_is_one_linear_head_per_class() -> None:
    data = random_data(4)
    model = fill(build(num_classes=4, parametrization="p"))
    logits = model(data).logits
    assert logits.shape == (4, 4)
    assert set(model.head_parameters) == {"V"}
    for k in range(4):
        binary = build(parametrization="p", attention_init=model.p.tolist(), head_init=model.V[k].tolist())
        torch.testing.assert_close(logits[:, k], binary(data).logits, rtol=1e-13, atol=1e-14)


def test_multiclass_gradient_equals_finite_differences() -> None:
    data, labels = random_data(4), torch.tensor([0, 3, 2, 1])
    model = fill(build(num_classes=4, parametrization="p"))
    loss = LOSSES["cross_entropy"]
    assert isinstance(loss, CrossEntropy)

    def f(p: Tensor, V: Tensor) -> Tensor:
        output = torch.func.functional_call(model, {"p": p, "V": V}, (data,))
        return loss(output.logits, labels).mean()

    assert torch.autograd.gradcheck(f, (model.p, model.V))


QUERIES = ("shared", "own", "separate")
CASES = [("p", "shared"), *(("W", query) for query in QUERIES), *(("KQ", query) for query in QUERIES)]


@pytest.mark.parametrize("loss", BINARY)
@pytest.mark.parametrize(("parametrization", "query"), CASES)
def test_set_attention_gradient_equals_autograd(parametrization: Any, query: Any, loss: str) -> None:
    data = random_data(5, queries=2, mask=True)
    prompt = PROMPT if query == "shared" else None
    model = fill(build(parametrization=parametrization, query=query, query_dim=2, prompt=prompt, rank=2), seed=1)
    margin_loss(loss)(model(data).logits, data.labels).mean().backward()
    wanted = {name: w.grad.clone() for name, w in model.named_parameters()}
    with torch.no_grad():
        seen = Sequences(data.keys, data.labels, data.values, model.queries(data), data.mask)
        d = exact_directions(seen, model.scores(data), model.head, margin_loss(loss))
        model.set_attention_gradient(-d.log_attention.exp() * d.attention)
        model.head.grad = -d.log_head.exp() * d.head
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("make", [NormalizedGD, pytest.param(AcceleratedMargin, marks=pytest.mark.slow)])
def test_training_W_with_a_unit_prompt_equals_training_p(make: Any) -> None:
    data = random_data(6, n=3, T=4)
    models = [build(parametrization=name, prompt=PROMPT) for name in ("p", "W")]
    optimizers = [make(model.parameters()) for model in models]
    for _ in range(1000):
        for model, optimizer in zip(models, optimizers, strict=True):
            with torch.no_grad():
                d = exact_directions(data, model.scores(data), model.head, margin_loss("logistic"))
            model.set_attention_gradient(-d.attention)
            model.head.grad = -d.head
            optimizer.step()
    (p, q), (v, w) = ([getattr(m, name).detach() for m in models] for name in ("direction", "head"))
    assert float(p.norm()) > 30
    assert float((p - q).norm() / p.norm()) < 1e-12
    assert float((v - w).norm() / v.norm()) < 1e-12
    # What W learned has rank 1: it is p z'.
    torch.testing.assert_close(models[1].matrix.detach(), torch.outer(q, UNIT), rtol=0, atol=1e-12 * float(q.norm()))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1.0, 60.0])
@pytest.mark.parametrize("parametrization", ["p", "W", "KQ"])
def test_tokens_read_once_give_the_gradient_of_tokens_read_twice(
    parametrization: Any, size: float, masked: bool
) -> None:
    """Also where all but one in 1e26 of a sequence's attention is on one token."""
    g = torch.Generator().manual_seed(0)
    keys, labels = torch.randn(40, 64, 128, generator=g, dtype=torch.float64), f64([1.0, -1.0]).repeat(20)
    mask = torch.arange(64) < torch.arange(1, 41)[:, None] if masked else None
    once = Sequences(keys, labels, mask=mask)
    twice = Sequences(keys, labels, keys.clone(), mask=mask)
    assert once.is_read_once
    assert not twice.is_read_once
    model = fill(build(128, parametrization=parametrization, prompt=[1.0] + [0.0] * 127))
    with torch.no_grad():
        for weight in model.attention_parameters.values():
            weight *= (size / model.direction.norm()) ** (0.5 if parametrization == "KQ" else 1.0)
    found = []
    for data in (once, twice):
        output = model(data)
        loss = torch.nn.functional.softplus(-labels * output.logits).mean() + output.attention.square().sum()
        found.append((output.logits, output.attention, *torch.autograd.grad(loss, list(model.parameters()))))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13 * float(wanted.detach().abs().max()))


def test_parameters_are_named_by_part() -> None:
    for parametrization, names in (("p", {"p"}), ("W", {"W"}), ("KQ", {"K", "Q"})):
        model = build(parametrization=parametrization)
        assert set(model.attention_parameters) == names
        assert set(model.head_parameters) == {"v"}
        assert {*names, "v"} == set(dict(model.named_parameters()))


def test_state_dict_holds_the_prompt() -> None:
    model = build(parametrization="W", prompt=PROMPT)
    other = build(parametrization="W")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.prompt, UNIT)
    build(query="own").load_state_dict(fill(build(query="own")).state_dict())


def test_starts() -> None:
    assert all(not w.any() for w in build().parameters())
    assert build(parametrization="p", attention_init=[1, 2, 3]).p.tolist() == [1, 2, 3]
    start = build(parametrization="W", prompt=PROMPT, attention_init=[1.0, 2.0, 3.0])
    torch.testing.assert_close(start.direction.detach(), f64([1, 2, 3]))
    assert torch.linalg.matrix_rank(start.W) == 1
    whole = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    assert build(parametrization="W", attention_init=whole).W.tolist() == whole
    torch.manual_seed(0)
    drawn = build(dim=400, parametrization="p", attention_init="normal", init_std=0.25).p
    assert drawn.std().item() == pytest.approx(0.25, rel=0.15)
    factors = build(parametrization="KQ", attention_init="normal", rank=2)
    assert factors.K.shape == factors.Q.shape == (3, 2)
    assert factors.K.any()
    assert not factors.Q.any()


def test_prompt_is_scaled_to_unit_length_and_first_axis_by_default() -> None:
    torch.testing.assert_close(build(prompt=PROMPT).prompt, UNIT)
    assert build().prompt.tolist() == [1, 0, 0]


BAD = {
    "p takes a shared prompt": ({"parametrization": "p", "query": "own"}, "shared prompt"),
    "p of wrong length": ({"parametrization": "p", "attention_init": [1.0, 2.0]}, r"attention_init.*\(2,\).*\(3,\)"),
    "W of wrong shape": ({"parametrization": "W", "attention_init": [[1.0, 2.0]]}, r"attention_init.*\(1, 2\)"),
    "K of wrong shape": ({"parametrization": "KQ", "attention_init": [1.0, 2.0, 3.0]}, r"attention_init.*\(3,\)"),
    "W without prompt": ({"query": "own", "attention_init": [1.0, 2.0, 3.0]}, r"attention_init.*\(3,\).*\(3, 3\)"),
    "head of wrong length": ({"head_init": [1.0]}, r"head_init.*\(1,\).*\(3,\)"),
    "head of values": ({"head_init": [1.0, 2.0, 3.0], "value_dim": 2}, r"head_init.*\(3,\).*\(2,\)"),
    "class head": ({"head_init": [1.0, 2.0, 3.0], "num_classes": 3}, r"head_init.*\(3,\).*\(3, 3\)"),
    "zero prompt": ({"prompt": [0.0, 0.0, 0.0]}, "prompt"),
    "short prompt": ({"prompt": [1.0]}, "prompt.*length 3"),
    "unknown parametrisation": ({"parametrization": "KQV"}, "parametrization"),
    "unknown query": ({"query": "mine"}, "query"),
    "unknown start": ({"attention_init": "ones"}, "attention_init"),
    "unknown head start": ({"head_init": "data"}, "head_init"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_separate_queries_must_be_there() -> None:
    with pytest.raises(InputError, match="separate"):
        build(query="separate")(random_data(1))


@pytest.mark.parametrize("pooling", ["centred", "naive"])
@pytest.mark.parametrize(("parametrization", "query"), CASES)
def test_autocast_changes_nothing(parametrization: Any, query: Any, pooling: Any) -> None:
    data = random_data(8, queries=2, mask=True).to(torch.float32)
    model = fill(TokenSelector(3, parametrization=parametrization, query=query, query_dim=2)).float()
    plain = model(data, pooling)
    with torch.autocast("cpu", torch.bfloat16):
        assert (data.keys @ torch.ones(3)).dtype == torch.bfloat16
        cast = model(data, pooling)
    for got, want in zip(cast, plain, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


def test_scores_are_what_the_directions_ask_for() -> None:
    data = random_data(9, queries=2)
    model = fill(build(query="separate", query_dim=2))
    torch.testing.assert_close(model.scores(data), scores_of(data, model.W))
    assert directions(data, model.W.detach(), model.v.detach(), "logistic").attention.shape == model.direction.shape
