"""The README shows commands that exist and points at files that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from p2pnode.console.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(p2pnode .*)$", TEXT, re.MULTILINE)
LINKS = re.findall(r"\]\(([^)]+)\)", TEXT)
PATHS = re.findall(r"`((?:configs|docs|escrow|dht|p2pnode|protocol|tests)/[^`]*)`", TEXT)
TARGETS = re.findall(r"make ([a-z]+)", TEXT)


def test_readme_shows_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command_in_the_readme_is_one_that_the_program_takes(command: str) -> None:
    build_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("path", sorted({*LINKS, *PATHS}))
def test_path_in_the_readme_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_make_target_in_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
