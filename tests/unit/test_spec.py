"""What SPEC.md shows of the code is what the code is."""

from __future__ import annotations

import pytest

from tests.tools.spec import REGIONS, SPEC, filled


@pytest.mark.parametrize("name", REGIONS)
def test_spec_has_the_region(name: str) -> None:
    """A region that is lost would be checked no more."""
    text = SPEC.read_text()
    assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1


def test_spec_shows_the_machines_and_kinds_that_there_are() -> None:
    """A diagram that differs from the machine misleads whoever writes another node. Mend with tests.tools.spec."""
    text = SPEC.read_text()
    assert filled(text) == text
