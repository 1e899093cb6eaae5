"""Set-up of the models' benchmarks."""

import pytest

import fastvision


@pytest.fixture(scope="package", autouse=True)
def freed_memory() -> None:
    """As in fastvision's own commands, for every provider."""
    fastvision.keep_freed_memory()
