"""The ``compare`` fixture, and the options ``--device`` and ``--quick``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device the cases run on (cpu, cuda)")
    parser.addoption("--quick", action="store_true", help="small cases only, few rounds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if not item.callspec.params["case"].quick]
        items[:] = [item for item in items if item.callspec.params["case"].quick]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark) -> Callable[[harness.Case], None]:
    """Measures a case; the test fails where fastvision's result is wrong."""

    def run(case: harness.Case) -> None:
        row = harness.compare(
            benchmark,
            case,
            torch.device(request.config.getoption("--device")),
            quick=request.config.getoption("--quick"),
        )
        benchmark.group = case.op
        benchmark.extra_info.update(row)
        request.node.user_properties.append(("row", row))  # reaches the runner of a failed test too
        if row["status"] != "ok":
            pytest.fail(f"{case.name}: {row['status']}: {row['reason']}", pytrace=False)

    return run
