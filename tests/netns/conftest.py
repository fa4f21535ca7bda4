"""Scenarios marked `netns` take a while: they run when asked for (`make netns`, or `-m netns`)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "netns" in (config.getoption("-m") or ""):
        return
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.skip(reason="runs with make netns"))
