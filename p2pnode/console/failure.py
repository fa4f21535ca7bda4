"""An error as a person sees it: one line on stderr, and an exit code. With `--json`, one JSON object on stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback

from p2pnode.console.cells import clean
from p2pnode.console.exits import Exit, exit_of
from p2pnode.redact import Redactor
from protocol.errors import P2PError

DEBUG_VARIABLE = "P2PNODE_DEBUG"


def tell(error: Exception, *, as_json: bool) -> int:
    """Print it and return the exit code."""
    code, line, known = _describe(error)
    exit_code = exit_of(code) if known else Exit.INTERNAL
    if as_json:
        print(json.dumps({"code": code, "detail": line, "exit": int(exit_code)}), file=sys.stderr)  # noqa: T201
    else:
        print(f"p2pnode: {line}", file=sys.stderr)  # noqa: T201
    if not known and os.environ.get(DEBUG_VARIABLE):
        trace = "".join(traceback.format_exception(error))
        print(Redactor().text(trace), file=sys.stderr)  # noqa: T201
    return int(exit_code)


def _describe(error: Exception) -> tuple[int, str, bool]:
    """(code, one line, whether it is an error that was meant to be told)."""
    if isinstance(error, ExceptionGroup):
        # Several tasks failed; the first that was meant to be told says most.
        known = [e for e in error.exceptions if isinstance(e, P2PError)]
        return _describe(known[0] if known else error.exceptions[0])
    if isinstance(error, P2PError):
        return error.code, _line(error.detail), True
    problem = getattr(error, "problem", None)
    if problem is not None:
        return problem.code, _line(problem.detail), True
    text = _line(Redactor().text(f"{type(error).__name__}: {error}"))
    return 1033, f"internal error ({text}): please report it; {DEBUG_VARIABLE}=1 shows more", False


def _line(text: str) -> str:
    return clean(" ".join(text.split()))
