"""The command line: `p2pnode VERB ...`. It starts a node, or talks to a running one through `p2pnode.client`.

Each verb is one function from parsed arguments to an exit code (`p2pnode/console/verbs`). What a verb needs is imported
when it runs, so that `--help` is quick. Results go to stdout, as a table or with `--json` as one JSON document;
progress and errors go to stderr. An error is one line that says what to do, and an exit code that scripts can rely on;
a traceback never shows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from p2pnode.console.asking import as_json
from p2pnode.console.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:  # noqa: BLE001  (the outermost frame: a person gets one line, whatever it was)
        return _failed(e, as_json=as_json(args))
    return code


def _failed(error: Exception, *, as_json: bool) -> int:
    from p2pnode.console.failure import tell

    return tell(error, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
