"""Who signs our inputs of a funding: the node's own wallet, or a person with a wallet of another kind.

The executor asks a `FundingSigner`. `WalletSigner` is the wallet with its keys. `PsbtSigner` is for a watch-only one:
it leaves a PSBT in a folder and waits until the signed one lies beside it. The person signs it with the wallet that
holds the keys (a hardware wallet, Sparrow, Bitcoin Core) and gives it back by `p2pnode trade psbt`. What comes back is
judged by `escrow.psbtplan`: any difference from what the contract says is refused, in one line. In the same way a
buyer takes its coins back when the seller withholds the funding.

The files stay; a restart finds them. The folder is as private as the data directory: a PSBT opens no coins, but tells
which are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from escrow.chain.base import Rejected
from escrow.funding import FundingPlan, in_message_order
from escrow.psbt import MAX_PSBT, BadPsbt, KeyOrigin, Psbt, encode, read
from escrow.psbtplan import OwnSpend, funding_psbt, own_psbt, own_rate, read_funding, read_own
from escrow.transactions import Witness, scripts_of
from escrow.wallet.base import Sent, Wallet
from p2pnode.datadir import write_private
from protocol.errors import Action, NotFound, UserError
from protocol.types import FeeRate, Side

REBID_FACTOR: Final = 2
"""By how much more a reclaim bids that was outbid."""
PSBT_FOLDER: Final = "psbts"
"""In the data directory."""


class AwaitingSignature(UserError):
    """A transaction of this trade waits for your signature: see `p2pnode trade psbt`."""

    code = 3330
    action = Action.RETRY


class FundingSigner(Protocol):
    """Signs for our coins in a funding that was agreed on, and takes them back when it is withheld."""

    async def sign_funding(
        self, plan: FundingPlan, side: Side, previous: Mapping[bytes, bytes], *, holder: bytes
    ) -> tuple[Witness, ...]:
        """Witnesses of the inputs of `side`, in the order of its own list; asked again, the same.

        `previous` are the whole previous transactions of both parties by txid, `holder` the trade for which the coins
        are reserved. Raises AwaitingSignature when the answer may come later, and what the wallet raises.
        """
        ...

    async def reclaim(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Spend the coins that are reserved for `holder` back to ourselves.

        Raises AwaitingSignature when the answer may come later, and what `Wallet.double_spend` raises.
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

    async def reclaim(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Sign and broadcast at once."""
        return await self._wallet.double_spend(holder, fee_rate)


Purpose = Literal["funding", "reclaim"]
"""What a person may be asked to sign."""


class PsbtFolder:
    """Where PSBTs go out and come back: the `psbts` folder of the data directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exported(self, trade_id: bytes, purpose: Purpose = "funding") -> Path:
        """What is to be signed."""
        return self._folder / f"{trade_id.hex()}-{purpose}.psbt"

    def signed(self, trade_id: bytes, purpose: Purpose = "funding") -> Path:
        """The signed one."""
        return self._folder / f"{trade_id.hex()}-{purpose}-signed.psbt"

    def export(self, trade_id: bytes, psbt: Psbt, purpose: Purpose = "funding") -> Path:
        """Write what is to be signed, unless it is there. Raises DiskError."""
        path, data = self.exported(trade_id, purpose), encode(psbt)
        if not path.exists() or path.read_bytes() != data:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, data)
        return path

    def wanted(self, trade_id: bytes) -> Purpose:
        """What waits to be signed: the reclaim comes after the funding, and instead of it."""
        return "reclaim" if self.exported(trade_id, "reclaim").exists() else "funding"

    def read_exported(self, trade_id: bytes, purpose: Purpose = "funding") -> Psbt:
        """What waits to be signed. Raises NotFound, BadPsbt."""
        psbt = _read(self.exported(trade_id, purpose))
        if psbt is None:
            raise NotFound("nothing of this trade waits to be signed outside of this node")
        return psbt

    def read_signed(self, trade_id: bytes, purpose: Purpose = "funding") -> Psbt | None:
        """What came back; None if nothing did. Raises BadPsbt."""
        return _read(self.signed(trade_id, purpose))

    def take_over(self, trade_id: bytes, plan: FundingPlan, side: Side, psbt: Psbt) -> Purpose:
        """Keep a signed PSBT, once it was judged; tells what it was.

        Raises StalePsbt, BadPsbt, UnsignedPsbt; then nothing is kept.
        """
        purpose: Purpose = "funding" if psbt.unsigned == plan.unsigned else self.wanted(trade_id)
        if purpose == "funding":
            read_funding(plan, side, psbt)
        else:
            read_own(self.read_exported(trade_id, purpose), psbt)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.signed(trade_id, purpose), encode(psbt))
        return purpose

    def forget(self, trade_id: bytes, purpose: Purpose) -> None:
        """Neither ask for it any more, nor keep what came back."""
        for path in (self.exported(trade_id, purpose), self.signed(trade_id, purpose)):
            path.unlink(missing_ok=True)


class Watching(Protocol):
    """What a wallet without keys does for the person who has them. See `escrow.wallet.base.Wallet`."""

    def origin_of(self, script_pubkey: bytes) -> KeyOrigin | None:
        """Where the key of one of its scripts comes from."""
        ...

    async def draft_double_spend(self, holder: bytes, fee_rate: FeeRate) -> OwnSpend:
        """What takes a trade's coins back, unsigned."""
        ...

    async def send_double_spend(self, holder: bytes, unsigned: bytes, witnesses: Sequence[Witness]) -> Sent:
        """Broadcast that, signed."""
        ...


class PsbtSigner:
    """A person with a wallet of another kind. The node's wallet watches, and tells where keys come from."""

    def __init__(self, folder: PsbtFolder, wallet: Watching) -> None:
        self._folder = folder
        self._wallet = wallet

    async def sign_funding(
        self, plan: FundingPlan, side: Side, previous: Mapping[bytes, bytes], *, holder: bytes
    ) -> tuple[Witness, ...]:
        """What the person signed. Raises AwaitingSignature, StalePsbt, BadPsbt, UnsignedPsbt, DiskError."""
        scripts = {i.spent.script_pubkey for i in plan.inputs} | {o.output.script_pubkey for o in plan.outputs}
        path = self._folder.export(holder, funding_psbt(plan, side, previous=previous, origins=self._origins(scripts)))
        psbt = self._folder.read_signed(holder)
        if psbt is None:
            raise _awaiting("the funding", path, holder)
        return read_funding(plan, side, psbt)

    async def reclaim(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Ask for the signature, then broadcast.

        What is asked for stays the same until the network wants a higher fee for it. Raises AwaitingSignature, BadPsbt,
        UnsignedPsbt, DiskError, and what the wallet raises.
        """
        path = self._folder.exported(holder, "reclaim")
        if not path.exists():
            await self._ask_reclaim(holder, fee_rate)
        asked, psbt = self._folder.read_exported(holder, "reclaim"), self._folder.read_signed(holder, "reclaim")
        if psbt is None:
            raise _awaiting("taking your coins back", path, holder)
        witnesses = read_own(asked, psbt)
        try:
            return await self._wallet.send_double_spend(holder, asked.unsigned, witnesses)
        except Rejected as e:
            if "insufficient fee" not in e.reason:
                raise
            # BIP125: the funding waits in the mempool by now, and must be outbid by something new.
            self._folder.forget(holder, "reclaim")
            await self._ask_reclaim(holder, max(fee_rate, REBID_FACTOR * own_rate(asked)))
            raise _awaiting("taking your coins back at a higher fee", path, holder) from e

    async def _ask_reclaim(self, holder: bytes, fee_rate: FeeRate) -> None:
        spend = await self._wallet.draft_double_spend(holder, fee_rate)
        scripts = {o.script_pubkey for o in spend.spent} | set(scripts_of(spend.unsigned))
        self._folder.export(holder, own_psbt(spend, self._origins(scripts)), "reclaim")

    def _origins(self, scripts: Iterable[bytes]) -> dict[bytes, KeyOrigin]:
        return {script: origin for script in scripts if (origin := self._wallet.origin_of(script)) is not None}


def _awaiting(what: str, path: Path, trade_id: bytes) -> AwaitingSignature:
    return AwaitingSignature(
        f"{what} waits for your signature: sign {path} and give it back with "
        f"`p2pnode trade psbt {trade_id.hex()[:16]} --import FILE`"
    )


def _read(path: Path) -> Psbt | None:
    try:
        with path.open("rb") as file:
            return read(file.read(2 * MAX_PSBT))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise BadPsbt(f"{path} can't be read: {e.strerror or e}") from e
