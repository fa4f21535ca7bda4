"""What once crashed a decoder, and what fuzzing starts from, is read without raising anything unannounced."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import CRASHES, TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_and_no_old_crash_raises(name: str) -> None:
    corpus = seeds(name)
    assert corpus
    # All crashes, and as many of the vectors as take a moment.
    crashes = [path.read_bytes() for path in (CRASHES / name).glob("*")]
    for data in [*crashes, b"", *corpus[:: 1 + len(corpus) // 400]]:
        TARGETS[name](data)
