"""Keys and values in float64 on the CPU, whatever they are and wherever they lie."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Numbers from which on numpy asks the system for large pages: 4 MB.
LARGE_PAGES = 2**19


def to_double(x: Tensor) -> Tensor:
    """x in float64 on the CPU, itself where it is that, and without its gradient.

    Large results lie in memory of numpy's, which has large pages: five million numbers of float16 take 1.5 ns each,
    in torch's own memory 4.2, most of it for the pages.

    Example:
        >>> to_double(torch.ones(2, dtype=torch.float16))
        tensor([1., 1.], dtype=torch.float64)
    """
    x = x.detach() if x.requires_grad else x
    is_there = x.device.type == "cpu" and x.dtype == torch.float64
    if is_there or x.numel() < LARGE_PAGES or x.layout != torch.strided:
        return x.to("cpu", torch.float64)
    return torch.from_numpy(np.empty(tuple(x.shape))).copy_(x)
