"""Bonds of our own personas: made, shown, taken back, found again from the mnemonic (SPEC section 14.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from dht.records import RecordMeta
from dht.topics import anchor_topic, reputation_topic
from escrow.address import address_of, script_of
from escrow.bond import MAX_LOCK, bond_output, lock_at_least, lock_step, prove_bond, spend_bond
from escrow.chain.base import ChainBackend, Confirmed, SpentBy, WatchRequest
from escrow.coins import OutPoint, txid_text
from escrow.keys import public_key
from escrow.transactions import parse, txid_of
from escrow.wallet.base import Wallet
from p2pnode.clock import Clock
from p2pnode.counters import next_number
from p2pnode.database import Database
from p2pnode.keyring import Keyring
from p2pnode.notices import Notices
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.kinds import outpoint_of
from protocol.bond import BOND_WORK_BITS, MAX_BOND_RECORD_LIFETIME, Bond, BondRecord
from protocol.errors import ChainError, NotFound, UserError
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack, parse_envelope, unpack
from protocol.work import NO_WORK, find_work

RENEW_SECONDS: Final = 100 * 86_400
FEE_TARGET: Final = 6
LEAST_BOND: Final = 10_000
"""Satoshis: less is not worth its own fees."""

log = logging.getLogger(__name__)


class BadBondTerms(UserError):
    """A bond can't be made like this."""

    code = 3340


class BondLocked(UserError):
    """The bond is still locked: nobody can spend it before its height."""

    code = 3341


class OwnBond(Struct, frozen=True):
    """A bond of ours. `height` and `block` are None while it waits; `spent` is the transaction that took it back."""

    txid: bytes
    vout: int
    persona: bytes
    value: int
    lock_height: int
    height: int | None
    block: bytes | None
    spent: bytes | None

    @property
    def coin(self) -> OutPoint:
        """Its output."""
        return OutPoint(self.txid, self.vout)


class Bonds:
    """The table `bonds`, and the coins that it stands for. The wallet does not count them: they are not to be spent."""

    def __init__(  # noqa: PLR0913  (a bond is coins, keys and a record)
        self,
        database: Database,
        wallet: Wallet,
        backend: ChainBackend,
        sight: ChainSight,
        keyring: Keyring,
        notices: Notices,
        network: Network,
        clock: Clock,
        *,
        kick: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`kick` is told when there is something to publish, `changed` when a bond was buried or taken back."""
        self._database = database
        self._db = database.connection
        self._wallet = wallet
        self._backend = backend
        self._sight = sight
        self._keyring = keyring
        self._notices = notices
        self._network = network
        self._clock = clock
        self._kick = kick
        self._changed = changed

    # --- making and taking back ---------------------------------------------------------------------------------

    async def create(self, amount: int, until: int, fee_rate: int | None = None) -> OwnBond:
        """Lock `amount` satoshis until the block `until` (rounded up to a lock height) for the default persona.

        Raises BadBondTerms, and what `Wallet.send` raises.
        """
        tip = self._sight.height
        lock_height = lock_at_least(until, self._network)
        if lock_height <= tip:
            raise BadBondTerms(f"block {until:,} is behind us: the chain is at {tip:,}")
        if lock_height > tip + MAX_LOCK:
            raise BadBondTerms(f"a bond is locked for at most {MAX_LOCK:,} blocks, that is until {tip + MAX_LOCK:,}")
        if amount < LEAST_BOND:
            raise BadBondTerms(f"a bond has at least {LEAST_BOND:,} sat")
        persona = self._keyring.persona.public
        script = self._script(persona, lock_height)
        rate = fee_rate or await self._backend.fee_rate(FEE_TARGET)
        sent = await self._wallet.send(address_of(script, self._network), amount, rate)
        outputs = [(bytes(o.scriptPubKey), int(o.nValue)) for o in parse(sent.tx).vout]
        made = OwnBond(sent.txid, outputs.index((script, amount)), persona, amount, lock_height, None, None, None)
        self._insert(made, tip)
        return made

    async def spend(self, txid: bytes, address: str | None = None, fee_rate: int | None = None) -> OwnBond:
        """Take a bond back once its height has come, to `address` or a fresh one of our own.

        Raises NotFound, BondLocked, BadBondTerms, and what the backend raises.
        """
        found = self._open(txid)
        if self._sight.height < found.lock_height:
            left = found.lock_height - self._sight.height
            raise BondLocked(f"the bond is locked until block {found.lock_height:,}: {left:,} more blocks")
        if address is None:
            script = (await self._wallet.new_address("bond")).script_pubkey
        else:
            script = script_of(address, self._network)
        rate = fee_rate or await self._backend.fee_rate(FEE_TARGET)
        secret = self._keyring.bond_secret(found.persona, found.lock_height)
        try:
            tx, _ = spend_bond(found.coin, found.value, found.lock_height, secret, script, rate)
        except ValueError as e:
            raise BadBondTerms(str(e)) from e
        await self._backend.broadcast(tx)
        self._db.execute(
            "UPDATE bonds SET spent = ?, record = NULL WHERE txid = ? AND vout = ?",
            (txid_of(tx), found.txid, found.vout),
        )
        self._changed()
        self._kick()
        return self._one(found.txid)

    async def restore(self, from_height: int) -> list[OwnBond]:
        """Find bonds of our persona from the mnemonic alone, in blocks from a height on. Raises what a watch raises."""
        persona = self._keyring.persona.public
        step = lock_step(self._network)
        first = lock_at_least(max(from_height, 1), self._network)
        last = self._sight.height + MAX_LOCK
        # One persona has few heights to try; watches of all of them cost one scan.
        scripts = {self._script(persona, height): height for height in range(first, last + 1, step)}
        keys = {b"bond-restore" + script[2:]: script for script in scripts}
        events = self._backend.events()
        requests = [WatchRequest(key, script, None, from_height, 1) for key, script in keys.items()]
        found: dict[OutPoint, tuple[Confirmed, int]] = {}
        spent: dict[OutPoint, bytes] = {}
        try:
            await self._backend.watch_many(requests)
            async for event in self._sight.told(events):
                if isinstance(event, Confirmed) and event.key in keys:
                    found[event.outpoint] = event, scripts[keys[event.key]]
                elif isinstance(event, SpentBy) and event.key in keys:
                    spent[event.outpoint] = event.txid
        finally:
            for key in keys:
                await self._backend.unwatch(key)
        for coin, (event, lock_height) in found.items():
            place = event.height, event.block_hash
            bond = OwnBond(coin.txid, coin.vout, persona, event.value, lock_height, *place, None)
            self._insert(bond, event.height)
            if coin in spent:
                self._db.execute(
                    "UPDATE bonds SET spent = ? WHERE txid = ? AND vout = ?", (spent[coin], coin.txid, coin.vout)
                )
        self._changed()
        self._kick()
        return self.all()

    # --- what there is ------------------------------------------------------------------------------------------

    def all(self) -> list[OwnBond]:
        """All bonds, those first that are locked longest."""
        rows = self._db.execute(f"{_SELECT} ORDER BY lock_height DESC, txid")
        return [OwnBond(*row) for row in rows]

    def current(self, persona: bytes) -> Bond | None:
        """The bond to show for a persona: of those buried and not taken back the one that is worth most."""
        tip = self._sight.height
        rows = self._db.execute(
            f"{_SELECT} WHERE persona = ? AND height IS NOT NULL AND spent IS NULL AND lock_height > ?", (persona, tip)
        )
        proved = [bond for own in (OwnBond(*row) for row in rows) if (bond := self._proved(own)) is not None]
        return max(proved, key=lambda bond: bond.worth(tip), default=None)

    async def look(self) -> None:
        """A block has come: are bonds buried that were not?"""
        rows = self._db.execute(f"{_SELECT} WHERE height IS NULL AND spent IS NULL").fetchall()
        for own in (OwnBond(*row) for row in rows):
            (start,) = self._db.execute(
                "SELECT from_height FROM bonds WHERE txid = ? AND vout = ?", (own.txid, own.vout)
            ).fetchone()
            try:
                trace = await self._sight.trace(self._script(own.persona, own.lock_height), own.coin, start, wait=False)
            except ChainError as e:
                log.info("a bond can't be looked up now: %s", e.detail)
                continue
            if trace.confirmed is None:
                continue
            with self._database.transaction():
                self._db.execute(
                    "UPDATE bonds SET height = ?, block = ? WHERE txid = ? AND vout = ?",
                    (trace.confirmed.height, trace.confirmed.block_hash, own.txid, own.vout),
                )
                self._notices.add("bond", self._clock.now())
            self._notices.wake()
            self._changed()
            self._kick()

    def records(self, now: int) -> Iterator[tuple[bytes, Envelope, RecordMeta]]:
        """What the publisher keeps in the DHT: the current bond under its persona and its output."""
        bond = self.current(self._keyring.persona.public)
        if bond is None:
            return
        raw, expires = self._db.execute(
            "SELECT record, expires FROM bonds WHERE txid = ? AND vout = ?", (bond.txid, bond.vout)
        ).fetchone()
        if raw is None or expires - now < RENEW_SECONDS:
            raw = self._seal(bond, now)
        envelope = parse_envelope(raw, self._network)
        record = unpack(envelope.body, BondRecord, limit=Kind.BOND.limit)
        meta = RecordMeta(record.persona, b"bond", record.sequence, record.expires, ())
        yield reputation_topic(self._network, record.persona), envelope, meta
        yield anchor_topic(self._network, outpoint_of(bond.txid, bond.vout)), envelope, meta

    def _seal(self, bond: Bond, now: int) -> bytes:
        key = self._keyring.persona
        sequence = next_number(self._database, f"bond:{key.public.hex()}", now)
        draft = BondRecord(key.public, sequence, bond, now, now + MAX_BOND_RECORD_LIFETIME, NO_WORK)
        raw = key.seal(Kind.BOND, self._network, find_work(Kind.BOND, self._network, pack(draft), BOND_WORK_BITS)).raw
        self._db.execute(
            "UPDATE bonds SET record = ?, expires = ? WHERE txid = ? AND vout = ?",
            (raw, draft.expires, bond.txid, bond.vout),
        )
        return raw

    def _proved(self, own: OwnBond) -> Bond | None:
        if own.height is None or own.block is None:
            return None
        secret = self._keyring.bond_secret(own.persona, own.lock_height)
        bond = Bond(
            txid=own.txid,
            vout=own.vout,
            value=own.value,
            lock_height=own.lock_height,
            key=public_key(secret),
            block=own.block,
            height=own.height,
            proof=bytes(64),
        )
        return prove_bond(secret, self._network, own.persona, bond)

    def _script(self, persona: bytes, lock_height: int) -> bytes:
        return bond_output(lock_height, public_key(self._keyring.bond_secret(persona, lock_height)))

    def _insert(self, bond: OwnBond, from_height: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO bonds (txid, vout, persona, value, lock_height, from_height, height, block) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                bond.txid,
                bond.vout,
                bond.persona,
                bond.value,
                bond.lock_height,
                from_height,
                bond.height,
                bond.block,
            ),
        )

    def find(self, prefix: str) -> OwnBond:
        """The bond whose txid begins like this. Raises NotFound."""
        found = [bond for bond in self.all() if txid_text(bond.txid).startswith(prefix.strip().lower())]
        if len(found) != 1:
            raise NotFound("no bond of this node, or more than one, has a transaction that begins like that")
        return found[0]

    def _one(self, txid: bytes) -> OwnBond:
        row = self._db.execute(f"{_SELECT} WHERE txid = ?", (txid,)).fetchone()
        if row is None:
            raise NotFound("this node has no such bond")
        return OwnBond(*row)

    def _open(self, txid: bytes) -> OwnBond:
        found = self._one(txid)
        if found.spent is not None:
            raise BadBondTerms("that bond has been taken back already")
        return found


_SELECT: Final = "SELECT txid, vout, persona, value, lock_height, height, block, spent FROM bonds"
