"""Runs something on the pretended device and on the CPU, and compares what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from tests.device.pretend import GPU, OnGpu

Test = TypeVar("Test", bound=Callable[..., Any])


def covers(*names: str) -> Callable[[Test], Test]:
    """Says which public names a test runs on the device; ``test_complete.py`` asks for every one of them."""

    def note(test: Test) -> Test:
        test.covers = names  # type: ignore[attr-defined]
        return test

    return note


def on_device(x: Any) -> Any:
    """The same with every tensor on the device."""
    if isinstance(x, Tensor | Sequences):
        return x.to(GPU)
    if isinstance(x, Mapping):
        return {k: on_device(v) for k, v in x.items()}
    return type(x)(map(on_device, x)) if isinstance(x, list | tuple) else x


def agree(function: Callable[..., Any], *args: Any, rtol: float = 1e-9, **kwargs: Any) -> Any:
    """What the function makes of arguments on the device, which is what it makes of them on the CPU."""
    expected = function(*args, **kwargs)
    found = function(*on_device(args), **on_device(kwargs))
    close(found, expected, rtol)
    return found


def close(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Fails where the two differ, wherever their tensors are."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        held = found.held if isinstance(found, OnGpu) else found
        torch.testing.assert_close(held, expected.detach(), rtol=rtol, atol=rtol, equal_nan=True)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=rtol, abs_tol=rtol) or (expected != expected and found != found)
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name], rtol)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other, rtol)
    elif isinstance(expected, Sequences):
        close([getattr(found, k) for k in Sequences.FIELDS], [getattr(expected, k) for k in Sequences.FIELDS], rtol)
    elif is_dataclass(expected) and not isinstance(expected, type):
        for field in fields(expected):
            if field.compare and field.name not in ("state", "loss_function", "problem"):
                close(getattr(found, field.name), getattr(expected, field.name), rtol)
    else:
        assert found == expected
