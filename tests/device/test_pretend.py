"""The pretended device does what a GPU does where it can be told apart: devices that mix, and what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.device.pretend import GPU, Gpu


def test_numbers_are_those_of_the_cpu(gpu: Gpu) -> None:
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert (x.device, x.is_cuda, (x @ x.T).cpu().tolist()) == (GPU, True, [[5.0, 14.0], [14.0, 50.0]])
    module = torch.nn.Linear(3, 1).to("cuda")
    module(x).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.device == GPU
    assert module.weight.grad.cpu().tolist() == [[3.0, 5.0, 7.0]]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, y: x + y, lambda x, y: x @ y, lambda x, y: torch.cat([x, y]), lambda x, y: x.addcmul_(x, y),
        lambda x, y: torch.where(y > 0, x, x),
    ],
)  # fmt: skip
def test_devices_do_not_mix(gpu: Gpu, mixed: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        mixed(torch.ones(3, device=GPU), torch.ones(3))


def test_a_device_tensor_is_no_array(gpu: Gpu) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        torch.ones(3, device=GPU).numpy()


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("item", lambda x: x.sum().item()), ("item", lambda x: float(x[0])), ("item", lambda x: bool((x > 0).all())),
        ("item", lambda x: x.tolist()), ("item", lambda x: x[x.argmax()]), ("equal", lambda x: torch.equal(x, x)),
        ("nonzero", lambda x: (x > 0).nonzero()), ("nonzero", lambda x: x[x > 0]), ("unique", lambda x: x.unique()),
        ("nonzero", lambda x: x.index_put_((x > 0,), x + 1)), ("masked_select", lambda x: x.masked_select(x > 0)),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())), ("copy to the host", lambda x: x.cpu()),
        ("copy to the host", lambda x: torch.empty(3).copy_(x)), ("bincount", lambda x: x.long().bincount()),
        ("copy to the device", lambda x: x.new_tensor(1.0)), ("copy to the device", lambda x: torch.ones(3).to(GPU)),
        ("copy to the device", lambda x: torch.tensor([1.0], device=GPU)),
        ("copy to the device", lambda x: x[torch.tensor([0, 1])]),
        ("linalg", lambda x: torch.linalg.inv(x.diag())), ("linalg", lambda x: torch.linalg.svd(x.diag())),
        ("synchronize", lambda x: torch.cuda.synchronize()), ("event", lambda x: recorded().synchronize()),
    ],
)  # fmt: skip
def test_what_waits(gpu: Gpu, kind: str, ask: Callable[[Any], Any]) -> None:
    x = torch.ones(3).to(GPU, non_blocking=True)
    with gpu.expecting(1):
        ask(x)
    assert [name.rsplit(" ", 1)[0] for name in gpu.waits] == [kind]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: torch.where(x > 0, x, 0.0), lambda x: x.masked_fill((x > 0).any(), 0.0),
        lambda x: x.new_full((), 3.0),
        lambda x: x.to("cpu", non_blocking=True), lambda x: torch.ones(3).to(GPU, non_blocking=True),
        lambda x: x.gather(0, x.argmax(0, keepdim=True)), lambda x: x.__setitem__(x > 0, 1.0), lambda x: x * 2.0,
        lambda x: torch.full((), 3.0, device=GPU), lambda x: x[torch.arange(2, device=GPU)], lambda x: x[0],
        lambda x: x * torch.tensor(2.0),
    ],
)  # fmt: skip
def test_what_does_not(gpu: Gpu, ask: Callable[[Any], Any]) -> None:
    x = torch.ones(3).to(GPU, non_blocking=True)
    with gpu.expecting(0):
        ask(x)


def recorded() -> Any:
    event = torch.Event(GPU)
    event.record()
    return event
