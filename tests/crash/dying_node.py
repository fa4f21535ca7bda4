"""The real daemon, which kills itself with SIGKILL right after the commit that brings its trade into a given phase.

Run as a program in the place of `cli.py`; the phase is in the environment variable DIE_IN.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import cli
from p2pnode.engine import Engine
from protocol.trade_state import TradeState

_apply = Engine.apply


def apply_and_die(self: Engine, *args: Any, **kwargs: Any) -> TradeState:  # noqa: ANN401  (passed through)
    """`Engine.apply`; its commit has reached the disk when it returns."""
    state = _apply(self, *args, **kwargs)
    if type(state.phase).__name__ == os.environ["DIE_IN"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return state


if __name__ == "__main__":
    Engine.apply = apply_and_die  # type: ignore[method-assign]
    sys.exit(cli.main())
