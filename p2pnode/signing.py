"""Who signs our inputs of a funding: the node's own wallet, or a person with a wallet of another kind.

The executor asks a `FundingSigner`. `WalletSigner` is the wallet with its keys. `PsbtSigner` is for a watch-only one:
it leaves a PSBT in a folder and waits until the signed one lies beside it. The person signs it with the wallet that
holds the keys (a hardware wallet, Sparrow, Bitcoin Core) and gives it back by `p2pnode trade psbt`. What comes back is
judged by `escrow.psbtplan.read_funding`: any difference from what the contract says is refused, in one line.

Both files stay until the trade is signed; a restart finds them. The folder is as private as the data directory: a PSBT
opens no coins, but tells which are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from escrow.funding import FundingPlan, in_message_order
from escrow.psbt import MAX_PSBT, BadPsbt, KeyOrigin, Psbt, encode, read
from escrow.psbtplan import funding_psbt, read_funding
from escrow.transactions import Witness
from escrow.wallet.base import Wallet
from p2pnode.datadir import write_private
from protocol.errors import Action, NotFound, UserError
from protocol.types import Side


class AwaitingSignature(UserError):
    """The funding waits for your signature: see `p2pnode trade psbt`."""

    code = 3330
    action = Action.RETRY


class FundingSigner(Protocol):
    """Signs our inputs of a funding that was agreed on."""

    async def sign_funding(
        self, plan: FundingPlan, side: Side, previous: Mapping[bytes, bytes], *, holder: bytes
    ) -> tuple[Witness, ...]:
        """Witnesses of the inputs of `side`, in the order of its own list; asked again, the same.

        `previous` are the whole previous transactions of both parties by txid, `holder` the trade for which the coins
        are reserved. Raises AwaitingSignature when the answer may come later, and what the wallet raises.
        """
        ...


class WalletSigner:
    """The node's own wallet."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet

    async def sign_funding(
        self, plan: FundingPlan, side: Side, previous: Mapping[bytes, bytes], *, holder: bytes
    ) -> tuple[Witness, ...]:
        """Sign at once."""
        del previous
        by_index = await self._wallet.sign_inputs(plan.unsigned, holder=holder)
        return in_message_order(plan, side, by_index)


class PsbtFolder:
    """Where PSBTs go out and come back: the `psbts` folder of the data directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exported(self, trade_id: bytes) -> Path:
        """The funding to be signed."""
        return self._folder / f"{trade_id.hex()}-funding.psbt"

    def signed(self, trade_id: bytes) -> Path:
        """The signed one."""
        return self._folder / f"{trade_id.hex()}-funding-signed.psbt"

    def export(self, trade_id: bytes, psbt: Psbt) -> Path:
        """Write what is to be signed, unless it is there. Raises DiskError."""
        path, data = self.exported(trade_id), encode(psbt)
        if not path.exists() or path.read_bytes() != data:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, data)
        return path

    def read_exported(self, trade_id: bytes) -> Psbt:
        """What waits to be signed. Raises NotFound, BadPsbt."""
        psbt = _read(self.exported(trade_id))
        if psbt is None:
            raise NotFound("nothing of this trade waits to be signed outside of this node")
        return psbt

    def read_signed(self, trade_id: bytes) -> Psbt | None:
        """What came back; None if nothing did. Raises BadPsbt."""
        return _read(self.signed(trade_id))

    def take_over(self, trade_id: bytes, plan: FundingPlan, side: Side, psbt: Psbt) -> tuple[Witness, ...]:
        """Keep a signed PSBT, once it was judged. Raises StalePsbt, BadPsbt, UnsignedPsbt; then nothing is kept."""
        witnesses = read_funding(plan, side, psbt)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.signed(trade_id), encode(psbt))
        return witnesses


class PsbtSigner:
    """A person with a wallet of another kind. `origins` tells where the key of one of our scripts comes from."""

    def __init__(self, folder: PsbtFolder, origins: Callable[[bytes], KeyOrigin | None]) -> None:
        self._folder = folder
        self._origins = origins

    async def sign_funding(
        self, plan: FundingPlan, side: Side, previous: Mapping[bytes, bytes], *, holder: bytes
    ) -> tuple[Witness, ...]:
        """What the person signed. Raises AwaitingSignature, StalePsbt, BadPsbt, UnsignedPsbt, DiskError."""
        scripts = {i.spent.script_pubkey for i in plan.inputs} | {o.output.script_pubkey for o in plan.outputs}
        origins = {script: origin for script in scripts if (origin := self._origins(script)) is not None}
        path = self._folder.export(holder, funding_psbt(plan, side, previous=previous, origins=origins))
        psbt = self._folder.read_signed(holder)
        if psbt is None:
            raise AwaitingSignature(
                f"the funding waits for your signature: sign {path} and give it back with "
                f"`p2pnode trade psbt {holder.hex()[:16]} --import FILE`"
            )
        return read_funding(plan, side, psbt)


def _read(path: Path) -> Psbt | None:
    try:
        with path.open("rb") as file:
            return read(file.read(2 * MAX_PSBT))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise BadPsbt(f"{path} can't be read: {e.strerror or e}") from e
