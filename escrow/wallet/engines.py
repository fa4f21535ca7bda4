"""Which engine the wallet runs on: BDK where it is installed, our own elsewhere, or the one that was asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from escrow.hd import ExtendedKey
from escrow.wallet.engine import WalletEngine
from escrow.wallet.native import NativeEngine
from protocol.errors import UserError
from protocol.types import Network

EngineName = Literal["auto", "bdk", "native"]


class NoBdk(UserError):
    """The wallet engine “bdk” was asked for and bdkpython is not installed: set wallet.engine to auto."""

    code = 3241


def make_engine(master: ExtendedKey, network: Network, name: EngineName = "auto") -> WalletEngine:
    """The engine of a master key. Raises NoBdk."""
    if name == "native":
        return NativeEngine(master, network)
    try:
        # Imported when it is wanted: bdkpython is not on every platform, and takes a while to load.
        engine: WalletEngine = import_module("escrow.wallet.bdk").BdkEngine(master, network)
    except ImportError as e:
        if name == "bdk":
            raise NoBdk from e
        return NativeEngine(master, network)
    return engine
