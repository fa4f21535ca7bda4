"""One side of a contract, ours: fresh keys, reserved coins, where our money goes, and a commitment to our details."""

from __future__ import annotations

from msgspec import Struct

from escrow.keys import make_keys
from escrow.shares import share_target
from escrow.wallet.base import Selection, Wallet
from p2pnode.clock import Clock
from p2pnode.keepsake import seal_keepsake
from p2pnode.keyring import Keyring
from protocol.contract import Bargain, FundingInput, Party, details_hash
from protocol.messages import Details, OpenedDetails, encode_details
from protocol.offer import Offer, deposit
from protocol.types import Side


class Contribution(Struct, frozen=True):
    """Our party as the contract will hold it, the transactions behind its inputs, and the opening of its details."""

    party: Party
    previous: tuple[bytes, ...]
    opened: OpenedDetails
    keepsake: bytes
    """The same for ourselves, sealed, to go with our first message."""


class Contributor:
    """Makes contributions. Asked again for the same trade, it reserves anew and forgets the former coins."""

    def __init__(self, keyring: Keyring, wallet: Wallet, clock: Clock) -> None:
        self._keyring = keyring
        self._wallet = wallet
        self._clock = clock

    async def prepare(
        self,
        trade_id: bytes,
        side: Side,
        persona: bytes,
        offer: Offer,
        bargain: Bargain,
        details: Details,
        nonce: bytes,
        *,
        payout: bytes | None = None,
    ) -> Contribution:
        """Our side of a trade. A release pays to the script `payout`, if one is given, all else to the wallet.

        Raises InsufficientFunds and the wallet's other errors.
        """
        selection = await self._coins(trade_id, side, offer, bargain)
        if selection is None:
            inputs: tuple[FundingInput, ...] = ()
            change = None
        else:
            inputs = tuple(
                FundingInput(i.outpoint.txid, i.outpoint.vout, i.value, i.script_pubkey) for i in selection.inputs
            )
            change = selection.change.script_pubkey if selection.change else await self._wallet.change_script()
        refund = await self._wallet.change_script()
        opened = OpenedDetails(self._clock.random(32), details)
        party = Party(
            persona=persona,
            keys=make_keys(*self._keyring.escrow_secrets(trade_id, side), trade_id, persona),
            payout_script=refund if payout is None else payout,
            refund_script=refund,
            change_script=change,
            inputs=inputs,
            details_hash=details_hash(opened.salt, encode_details(details)),
            nonce=nonce,
        )
        previous = tuple(i.previous_tx for i in selection.inputs) if selection else ()
        keepsake = seal_keepsake(self._keyring.seed.keepsake_key(trade_id), opened)
        return Contribution(party, previous, opened, keepsake)

    async def _coins(self, trade_id: bytes, side: Side, offer: Offer, bargain: Bargain) -> Selection | None:
        buyer_deposit = deposit(bargain.amount, offer.buyer_deposit)
        if side is Side.BUY and buyer_deposit == 0:
            return None
        target = share_target(
            side,
            amount=bargain.amount,
            buyer_deposit=buyer_deposit,
            seller_deposit=deposit(bargain.amount, offer.seller_deposit),
            escrow_type=bargain.escrow_type,
            backup_delay=offer.backup_delay,
            fees=bargain.fees,
        )
        return await self._wallet.select(target, bargain.fees.funding, holder=trade_id)
