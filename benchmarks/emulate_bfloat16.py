"""Train in bfloat16 on a processor that has no arithmetic for it.

Layers compute in float32 on operands that are bfloat16, and their results are rounded to bfloat16: what such processors
do, for they add up products in float32. So learning is that of bfloat16; speed is not. Takes the arguments of galampi:

    mpirun -n 2 python benchmarks/emulate_bfloat16.py train jobs/pong.toml --precision bfloat16
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from galampi.__main__ import main
from galampi.learning.layers import Convolution, Dense


def rounded(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Let a layer's `forward` or `backward` compute in float32, with operands and results in bfloat16."""

    def wrapper(layer: Any, *operands: Any, **options: Any) -> Any:
        wide = [operand.float() for operand in operands]
        results = compute(layer, *wide, **options)
        if results is None:
            # `forward` fills its last operand.
            operands[-1].copy_(wide[-1])
            return None
        return tuple(result if result is None else result.to(torch.bfloat16) for result in results)

    return wrapper


if __name__ == "__main__":
    for layer in (Convolution, Dense):
        layer.forward = rounded(layer.forward)  # type: ignore[method-assign]
        layer.backward = rounded(layer.backward)  # type: ignore[method-assign]
    sys.exit(main())
