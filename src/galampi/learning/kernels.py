"""Parts of torch that it does not publish, each as it is used here, with a plain way where one is missing.

No other module of this package names any. `tests/unit/learning/test_kernels.py` says with which versions of torch they
were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CPU_FACTS = Path("/proc/cpuinfo")


_threshold_backward: Any = getattr(torch.ops.aten, "threshold_backward", None)
_tanh_backward: Any = getattr(torch.ops.aten, "tanh_backward", None)
_convolution_backward: Any = getattr(torch.ops.aten, "convolution_backward", None)
_fused_adam: Any = getattr(torch, "_fused_adam_", None)
_is_avx512_bf16_supported: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)


def relu_backward(gradient: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of x for that of y = max(x, 0), both [...]."""
    if _threshold_backward is None:
        return gradient * (y > 0)
    result: Tensor = _threshold_backward(gradient, y, 0)
    return result


def tanh_backward(gradient: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of x for that of y = tanh(x), both [...]."""
    if _tanh_backward is None:
        return gradient * (1 - y * y)
    result: Tensor = _tanh_backward(gradient, y)
    return result


def convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, *, needs_input: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x (if needed), weight and bias of a convolution without padding.

    Args:
        gradient: [N, out channels, h', w'], of its output.
        x: [N, in channels, h, w], channels last in memory, as are all.
        weight: [out channels, in channels, kernel height, kernel width].
        stride: In both directions.
        needs_input: Whether the first is needed.
    """
    num_outputs = weight.shape[0]
    if _convolution_backward is None:
        bias = weight.new_zeros(num_outputs)
        inputs = [tensor.detach().requires_grad_() for tensor in (weight, bias, *([x] if needs_input else []))]
        with torch.enable_grad():
            y = functional.conv2d(inputs[2] if needs_input else x, inputs[0], inputs[1], stride)
        by_weight, by_bias, *by_input = torch.autograd.grad(y, inputs, gradient)
        last = torch.channels_last
        return by_input[0] if needs_input else None, by_weight.contiguous(memory_format=last), by_bias
    found = _convolution_backward(
        gradient,
        x,
        weight,
        [num_outputs],
        [stride] * 2,
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [needs_input, True, True],
    )
    return found[0] if needs_input else None, found[1], found[2]


def adam_in_one_pass(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    square_avgs: Sequence[Tensor],
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    num_steps: float,
    gradient_scale: float,
) -> bool:
    """Make one step of Adam, as `optimizer.Adam` has it, on chunks of a vector, in one pass over memory.

    Without momentum, at a step count that leaves no bias to correct, it is RMSprop in torch's form; and torch has Adam,
    alone among its optimizers of this kind, as one pass: 0.9 ms where the five passes of RMSprop's formula take 4. What
    it would keep as momentum goes to the averages, which may then be the same memory for every chunk.

    Returns:
        Whether it did; if not, this torch has no such pass, and nothing is changed.
    """
    if _fused_adam is None:
        return False
    _fused_adam(
        parameters,
        gradients,
        averages,
        square_avgs,
        [],
        [torch.tensor(num_steps)] * len(parameters),
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=epsilon,
        amsgrad=False,
        maximize=False,
        # Divides and keeps, as mixed precision wants it.
        grad_scale=None if gradient_scale == 1 else torch.tensor(1 / gradient_scale),
    )
    return True


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by itself."""
    if _is_avx512_bf16_supported is None:
        return "avx512_bf16" in _CPU_FACTS.read_text() if _CPU_FACTS.exists() else False
    return bool(_is_avx512_bf16_supported())
