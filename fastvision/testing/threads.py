"""Results for different numbers of threads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def same_for_threads(
    call: Callable[[], Tensor | tuple[Tensor, ...]], counts: tuple[int, ...] = (1, 2, 3)
) -> tuple[Tensor, ...]:
    """The tensors that ``call`` returns, which are bit for bit the same for any of ``counts``.

    Raises:
        AssertionError: they are not.
    """
    before = torch.get_num_threads()
    results = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            result = call()
            results.append((result,) if isinstance(result, Tensor) else result)
    finally:
        torch.set_num_threads(before)
    for count, result in zip(counts, results, strict=True):
        same = all(map(torch.equal, result, results[0])) and len(result) == len(results[0])
        assert same, f"{count} threads give another result than {counts[0]}"
    return results[0]
