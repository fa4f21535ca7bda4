"""Contract files: what one needs besides the mnemonic to move an escrow without this node (SPEC section 9).

Written before the funding is signed, one small JSON file per trade. It holds no secret that opens coins: the escrow
keys come from the mnemonic and the trade id. It does hold the trade's nonces, so it tells its reader which escrow on
the chain is this one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from protocol.contract import contract_id
from protocol.errors import LocalError
from protocol.trade_state import TradeState
from protocol.wire import pack


class NotWritable(LocalError):
    """The contract file could not be written: check the disk and the directory's permissions."""

    code = 1301


class ContractDirectory:
    """The `contracts` folder of the data directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, trade_id: bytes) -> Path:
        """Where a trade's file is."""
        return self._folder / f"{trade_id.hex()}.json"

    def export(self, state: TradeState) -> Path:
        """Write the trade's contract file and have it on disk before returning. Raises NotWritable."""
        if state.contract is None:
            raise NotWritable("a trade without a contract has no contract file")
        document = {
            "p2pnode-contract": 1,
            "network": state.network.name.lower(),
            "side": state.side.name.lower(),
            "trade_id": state.trade_id.hex(),
            "contract_id": contract_id(state.contract, state.network).hex(),
            "contract": pack(state.contract).hex(),
        }
        path = self.path(state.trade_id)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_durably(path, (json.dumps(document, indent=1) + "\n").encode())
        except OSError as e:
            raise NotWritable(f"the contract file {path} could not be written: {e.strerror}") from e
        return path


def _write_durably(path: Path, data: bytes) -> None:
    scratch = path.with_suffix(".new")
    with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
