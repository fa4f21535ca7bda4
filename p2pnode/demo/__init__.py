"""`p2pnode demo`: a whole trade on one machine, with nothing simulated.

A real bitcoind on regtest; two bootstrap nodes, two arbiters, a seller and a buyer, each the real daemon in a process
and a data directory of its own. They find each other through the bootstrap nodes and trade; we only ask, as a user
does, through their APIs. `cast` has the processes, `play` the trade, `onchain` and `report` judge it, `show` prints it.

Whatever happens (an error, Ctrl-C, SIGTERM, our own death), every process that was started is ended; only `--keep`
leaves them running, once all went well.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from p2pnode.findbitcoind import find_bitcoind
from protocol.errors import P2PError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from p2pnode.demo.cast import Cast
    from p2pnode.demo.disputes import DisputeReport
    from p2pnode.demo.play import Script
    from p2pnode.demo.report import Report

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
_FILE_WIDTH: Final = 120
_FOLDER: Final = "p2pnode-demo-"


def main(
    *,
    as_json: bool = False,
    keep: bool = False,
    escrow_type: Literal[1, 2] = 2,
    single: bool = False,
    dispute: bool = False,
) -> int:
    """Run the demo and return the exit code.

    `as_json` prints one document instead of tables, `keep` leaves all nodes running, `single` is a trade without
    deposits that the seller funds alone, `dispute` plays trades that go wrong instead. Raises BitcoindMissing.
    """
    from rich.console import Console

    from p2pnode.demo.disputes import DisputeReport
    from p2pnode.demo.play import Script
    from p2pnode.demo.show import show, show_disputes, show_next

    # With --json, stdout is for the document alone; who watches a terminal still sees the steps.
    shown = (sys.stderr if as_json else sys.stdout).isatty()
    # In a file or a pipe nothing needs to be folded.
    console = Console(stderr=as_json, quiet=as_json and not shown, width=None if shown else _FILE_WIDTH)
    script = None if dispute else Script(escrow_type=escrow_type, single=single)
    binary = find_bitcoind()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    # Where something went wrong, the logs that tell why are in there.
    keep_folder = True
    try:
        report = asyncio.run(_run(folder, binary, script, console, keep=keep))
        keep_folder = keep
    except (KeyboardInterrupt, asyncio.CancelledError):
        keep_folder = False
        print("demo: interrupted; every process is ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    except P2PError as e:
        print(f"demo: {e.detail}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        if not keep_folder:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    elif isinstance(report, DisputeReport):
        show_disputes(console, report)
    else:
        show(console, report)
        if keep:
            show_next(console, report)
    return 0


async def _run(
    folder: Path, binary: Path, script: Script | None, console: Console, *, keep: bool
) -> Report | DisputeReport:
    from p2pnode.demo.cast import Cast

    cast = Cast(folder, binary, keep=keep)
    try:
        with _signals():
            report = await _perform(cast, script, console)
            if keep:
                cast.let_go()
            return report
    finally:
        # By now there is nothing left to end, unless something went wrong.
        await cast.close()


async def _perform(cast: Cast, script: Script | None, console: Console) -> Report | DisputeReport:
    from p2pnode.demo.disputes import DisputePlay
    from p2pnode.demo.play import Play
    from p2pnode.demo.report import make_report
    from p2pnode.demo.steps import Steps

    steps = Steps(console)
    report: Report | DisputeReport
    if script is None:
        report = await DisputePlay(cast, steps).disputes()
    else:
        played = await Play(cast, script, steps).perform()
        report = await make_report(cast, script, played, steps.done)
    if not cast.keep:
        with steps.step("stop all nodes"):
            await cast.stop()
    return report


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo in order, as Ctrl-C does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    # What is ignored already stays so: `nohup` is there to survive the terminal.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, lambda: task and task.cancel())
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
