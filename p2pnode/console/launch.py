"""`p2pnode run`: what comes before the node itself. Configuration, data directory, lock, log, passphrase, keys.

The lock is held until the process ends, and taken before the passphrase is asked for, so that nobody types it in vain.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from p2pnode import keystore, log
from p2pnode.config import Config, load
from p2pnode.datadir import DataDir
from p2pnode.keystore import Keys, WrongPassphrase

ATTEMPTS: Final = 3
"""Times that a wrong passphrase may be typed."""


def run(flags: Mapping[str, object], file: Path | None) -> None:
    """Run a node until it is stopped. Raises P2PError when it can't start."""
    config = load(flags=flags, file=file, environ=os.environ)
    folder = DataDir(config.data_dir)
    folder.require_node()
    keystore.check_network(keystore.read(folder.keystore), config.network, folder.keystore)
    with folder.lock():
        log.setup(config.log)
        keys = unlock(config, folder)
        # The node's own modules take a while to load; a wrong passphrase should not have to wait for them.
        from p2pnode import app  # noqa: PLC0415

        app.run(config, keys)


def unlock(config: Config, folder: DataDir) -> Keys:
    """The keys, asking for the passphrase where it is needed and not given.

    Raises WrongPassphrase, NoPassphrase and what the keystore raises.
    """
    if config.chain.password:
        log.protect(config.chain.password)
    if not keystore.read(folder.keystore).has_passphrase:
        return keystore.unlock(folder.keystore, "", config.network)
    given = config.keystore.passphrase_file is not None or keystore.PASSPHRASE_VARIABLE in os.environ
    left = 1 if given else ATTEMPTS
    while True:
        passphrase = keystore.ask_passphrase(os.environ, config.keystore.passphrase_file)
        log.protect(passphrase)
        left -= 1
        try:
            return keystore.unlock(folder.keystore, passphrase, config.network)
        except WrongPassphrase as e:
            if left == 0:
                raise
            print(e.detail, file=sys.stderr)  # noqa: T201  (a prompt)
