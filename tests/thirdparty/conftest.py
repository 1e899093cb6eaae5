"""A sample that changes with the date, for machines that have no hour: ``--sample 12``."""

from __future__ import annotations

import datetime
import hashlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", type=int, default=0, help="run as many of the models, by the date")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    size = config.getoption("--sample")
    if size:
        today = datetime.date.today().isoformat()
        order = sorted(items, key=lambda i: hashlib.sha256((today + i.nodeid).encode()).digest())
        items[:] = order[:size]
