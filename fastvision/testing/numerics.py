"""How far a result may be from the reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor

# a few roundings in the result's dtype, per unit of magnitude: sums are in float32 or float64
TOLERANCES = {
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
    torch.float32: 2e-5,
    torch.float64: 1e-12,
}
DTYPES = tuple(TOLERANCES)  # that every op has
# that the convolutions of a GPU have kernels for
CONVOLUTION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_matches(actual: Tensor, expected: Tensor, *, scale: float = 1.0) -> None:
    """Asserts that ``actual`` is within its dtype's tolerance of ``expected``; NaN matches NaN.

    Args:
        expected: of any dtype.
        scale: widens the budget for sums of many terms, such as gradients.
    """
    tolerance = TOLERANCES[actual.dtype] * scale
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
