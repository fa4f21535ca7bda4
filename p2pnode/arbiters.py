"""The arbiters that this node knows: their announcements, and our own as one (DESIGN section 11).

An offer and a contract name an announcement by its id, so that nobody's terms change under a trade. Hence an
announcement that its arbiter has replaced is kept while it may still be asked for: those that our own offers name for
as long as they do, of each arbiter the last `KEPT_VERSIONS`. An expired one is never returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from msgspec import Struct

from dht.node import DhtNode
from dht.topics import arbiters_topic
from escrow.bond import check_bond
from p2pnode.clock import Clock
from p2pnode.counters import next_number
from p2pnode.database import Database
from p2pnode.lookups import Lookups
from protocol.announcement import (
    ARBITER_WORK_BITS,
    Announcement,
    FeeTerms,
    read_announcement,
)
from protocol.bond import Bond
from protocol.errors import Malformed, PeerViolation, UserError
from protocol.identity import SigningKey
from protocol.score import REFERENCE_AMOUNT, ArbiterMerit, arbiter_merit
from protocol.types import Network
from protocol.wire import Envelope, Kind, digest, open_envelope, pack, parse_envelope, unpack
from protocol.work import NO_WORK, find_work

LOOKUP_PATHS: Final = 3
"""Disjoint ways through the DHT, so that one liar on the way can't hide arbiters."""
FRESH_SECONDS: Final = 30.0
"""Age at which the directory is looked up again when somebody asks."""
WAIT_SECONDS: Final = 3.0
KEPT_VERSIONS: Final = 8
CAPACITY: Final = 2_000
"""Announcements kept, at most: as many as a topic of the DHT holds."""
MAX_POLICY: Final = 400
"""Characters of a policy (`protocol.types.ShortTerms`)."""

log = logging.getLogger(__name__)


class BadAnnouncement(UserError):
    """The announcement can't be made like this."""

    code = 3050


class Listed(Struct, frozen=True):
    """An announcement and the envelope that proves it; the envelope's id is the announcement's."""

    envelope: Envelope
    announcement: Announcement


class Ranking(Protocol):
    """What the order of arbiters hangs on besides their fees (`p2pnode.reputation.ranking`)."""

    def refusal(self, persona: bytes) -> str | None:
        """Why an arbiter is out of the question; None: it is not."""
        ...

    def prepare(self) -> Awaitable[None]:
        """Bring up to date who is out of the question."""
        ...

    def check(self, listed: Sequence[Listed]) -> Awaitable[None]:
        """Bring up to date what the order hangs on."""
        ...

    def merit(self, listed: Listed, amount: int = 0) -> ArbiterMerit:
        """Its points for a trade of `amount` satoshis (0: one of usual size)."""
        ...

    def bond_state(self, listed: Listed) -> str:
        """What our chain says of its bond."""
        ...


class ByFee:
    """The order where nothing else is known."""

    def refusal(self, persona: bytes) -> str | None:  # noqa: ARG002  (nobody is)
        """Nobody is out of the question."""
        return None

    async def prepare(self) -> None:
        """Nobody is out of the question."""

    async def check(self, listed: Sequence[Listed]) -> None:
        """There is nothing to bring up to date."""

    def merit(self, listed: Listed, amount: int = 0) -> ArbiterMerit:
        """The fee alone."""
        value = listed.announcement
        reckoned = amount or min(REFERENCE_AMOUNT, value.max_amount)
        fee = value.fee.fee(reckoned)
        return arbiter_merit(bond_worth=0, rulings=(), late=0, weeks=0, fee=fee, amount=reckoned)

    def bond_state(self, listed: Listed) -> str:
        """Nothing is checked."""
        return "none" if listed.announcement.bond is None else "unchecked"


class ArbiterTerms(Struct, frozen=True):
    """What our persona offers to serve as an arbiter. Empty lists mean any; `lifetime` is in seconds."""

    fee: FeeTerms
    currencies: tuple[str, ...]
    methods: tuple[str, ...]
    languages: tuple[str, ...]
    max_amount: int
    response_blocks: int
    policy: str
    lifetime: int


class ArbiterDirectory:
    """Announcements in SQLite, refreshed from the DHT."""

    def __init__(
        self,
        database: Database,
        dht: DhtNode,
        network: Network,
        clock: Clock,
        *,
        own: Collection[bytes] = (),
        referenced: Callable[[], Collection[bytes]] = tuple,
    ) -> None:
        """`own` are our personas; `referenced` gives the ids of announcements that must be kept though replaced."""
        self.ranking: Ranking = ByFee()
        """The order of arbiters, and who is none for us; set another one before anybody asks."""
        self._database = database
        self._db = database.connection
        self._dht = dht
        self._network = network
        self._clock = clock
        self._own = frozenset(own)
        self._referenced = referenced
        self._lookups = Lookups()

    # --- coming in ----------------------------------------------------------------------------------------------

    def remember(self, envelope: Envelope, now: int) -> Announcement:
        """Keep a verified announcement. Raises Malformed, BadBond, AnnouncementExpired."""
        value = read_announcement(envelope, self._network, now)
        if value.bond is not None:
            check_bond(value.bond, self._network, value.persona)
        self._db.execute(
            "INSERT OR IGNORE INTO announcements (id, persona, sequence, raw, expires) VALUES (?, ?, ?, ?, ?)",
            (envelope.id, value.persona, value.sequence, envelope.raw, value.expires),
        )
        return value

    async def refresh(self, *, fresh_seconds: float = FRESH_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        """Ask the DHT for all arbiters and for proofs against them, unless that was done just now.

        Waits for the answers only so long. What the order hangs on is brought up to date by `rank`.
        """
        await self._lookups.ask("arbiters", self._ask, fresh_seconds=fresh_seconds, wait_seconds=wait_seconds)

    async def rank(self) -> None:
        """Ask the DHT and the chain for bonds and rulings of all arbiters that are known."""
        await self.ranking.check(self._present())

    async def close(self) -> None:
        """Give up what is being looked up."""
        await self._lookups.close()

    async def _ask(self) -> bool:
        # At once: a take waits for both.
        found, _ = await asyncio.gather(
            self._dht.find_records(arbiters_topic(self._network), paths=LOOKUP_PATHS), self.ranking.prepare()
        )
        now = self._clock.now()
        known = {bytes(row[0]) for row in self._db.execute("SELECT id FROM announcements")}
        with self._database.transaction():
            for record in found.records:
                if record.envelope.id in known:
                    continue
                try:
                    self.remember(record.envelope, now)
                except PeerViolation as e:
                    log.info("an announcement is left out: %s", e.detail)
            self._prune(now)
        return bool(found.records)

    def _prune(self, now: int) -> None:
        """Drop what has expired, what was replaced long ago, and what is over the capacity."""
        expired = self._db.execute("SELECT id, persona FROM announcements WHERE expires <= ?", (now,)).fetchall()
        keep = set(self._referenced())
        superfluous = self._db.execute(
            """SELECT id, persona FROM
                   (SELECT id, persona, row_number() OVER (PARTITION BY persona ORDER BY sequence DESC) AS version,
                           row_number() OVER (ORDER BY expires DESC) AS place FROM announcements)
               WHERE version > ? OR place > ?""",
            (KEPT_VERSIONS, CAPACITY),
        ).fetchall()
        # Of our own none is dropped: a trade that was made while it lived may be disputed after.
        doomed = [(i,) for i, persona in superfluous if i not in keep and persona not in self._own]
        doomed += [(i,) for i, persona in expired if persona not in self._own]
        self._db.executemany("DELETE FROM announcements WHERE id = ?", doomed)

    # --- answering ----------------------------------------------------------------------------------------------

    def get(self, announcement_id: bytes) -> Listed | None:
        """The announcement of this id, replaced or not; None when it is unknown or has expired."""
        row = self._db.execute(
            "SELECT raw FROM announcements WHERE id = ? AND expires > ?", (announcement_id, self._clock.now())
        ).fetchone()
        return None if row is None else self._listed(row[0])

    def own(self, announcement_id: bytes) -> tuple[Envelope, Announcement] | None:
        """An announcement of ours by its id, expired ones too: we owe an answer to the trades that were made by it."""
        row = self._db.execute("SELECT persona, raw FROM announcements WHERE id = ?", (announcement_id,)).fetchone()
        if row is None or row[0] not in self._own:
            return None
        listed = self._listed(row[1])
        return listed.envelope, listed.announcement

    def newest_of(self, persona: bytes) -> Listed | None:
        """The present announcement of an arbiter; None when it is unknown or has expired."""
        row = self._db.execute(
            "SELECT raw, expires FROM announcements WHERE persona = ? ORDER BY sequence DESC LIMIT 1", (persona,)
        ).fetchone()
        return None if row is None or row[1] <= self._clock.now() else self._listed(row[0])

    def find(
        self, currency: str | None = None, method: str | None = None, amount: int = 0, language: str | None = None
    ) -> list[Listed]:
        """The present announcements that serve such a trade (None, 0: any), the best first by `ranking`.

        Who is out of the question (blocked, or proved to contradict itself) is not among them.
        """

        def place(x: Listed) -> tuple[int, int, int, int, bytes]:
            value = x.announcement
            points = self.ranking.merit(x, amount).points
            return -points, value.fee.fee(amount), value.fee.share, value.created, x.envelope.id

        fit = (
            x
            for x in self._present()
            if _serves(x.announcement, currency, method, amount)
            and (language is None or language in x.announcement.languages)
            and self.ranking.refusal(x.announcement.persona) is None
        )
        return sorted(fit, key=place)

    def _present(self) -> list[Listed]:
        now = self._clock.now()
        # SQLite takes the other columns from the row that has the maximum.
        rows = self._db.execute("SELECT raw, expires, max(sequence) FROM announcements GROUP BY persona")
        return [self._listed(raw) for raw, expires, _ in rows if expires > now]

    def verified(self, listed: Listed) -> Listed:
        """The same, its stored signature checked again: before money follows from it. Raises BadSignature."""
        open_envelope(listed.envelope.raw, self._network, limit=Kind.ARBITER.limit)
        return listed

    # --- announcing ---------------------------------------------------------------------------------------------

    async def announce(
        self, key: SigningKey, base_point: bytes, terms: ArbiterTerms, bond: Bond | None = None
    ) -> Listed:
        """Sign and keep the next announcement of our persona `key`; the publisher takes it to the DHT.

        `base_point` is the public key of the persona's arbiter base key (`escrow.seed`), `bond` one that the persona
        proves. Raises BadAnnouncement.
        """
        now = self._clock.now()
        draft = Announcement(
            persona=key.public,
            sequence=next_number(self._database, f"announcement:{key.public.hex()}", now),
            base_point=base_point,
            fee=terms.fee,
            currencies=terms.currencies,
            methods=terms.methods,
            languages=terms.languages,
            max_amount=terms.max_amount,
            response_blocks=terms.response_blocks,
            policy_hash=digest(b"p2pnode/policy", terms.policy.encode()),
            policy=terms.policy,
            bond=bond,
            created=now,
            expires=now + terms.lifetime,
            work=NO_WORK,
        )
        body = pack(draft)
        if terms.fee.floor > terms.fee.cap:
            raise BadAnnouncement("the least fee is over the greatest")
        if len(terms.policy) > MAX_POLICY:
            raise BadAnnouncement(f"a policy has at most {MAX_POLICY} characters, this has {len(terms.policy)}")
        if len(key.seal(Kind.ARBITER, self._network, body).raw) > Kind.ARBITER.limit:
            raise BadAnnouncement(
                "the announcement does not fit one datagram: shorten the policy, or name fewer currencies and methods"
            )
        try:
            unpack(body, Announcement, limit=Kind.ARBITER.limit)
        except Malformed as e:
            raise BadAnnouncement(e.detail) from e
        worked = await asyncio.to_thread(find_work, Kind.ARBITER, self._network, body, ARBITER_WORK_BITS)
        envelope = key.seal(Kind.ARBITER, self._network, worked)
        return Listed(envelope, self.remember(envelope, now))

    async def carry_bond(self, key: SigningKey, bond: Bond | None) -> bool:
        """Announce our present terms again if they do not carry this bond; whether that was so."""
        listed = self.newest_of(key.public)
        if listed is None or listed.announcement.bond == bond:
            return False
        value = listed.announcement
        terms = ArbiterTerms(
            fee=value.fee,
            currencies=value.currencies,
            methods=value.methods,
            languages=value.languages,
            max_amount=value.max_amount,
            response_blocks=value.response_blocks,
            policy=value.policy,
            lifetime=value.expires - self._clock.now(),
        )
        await self.announce(key, value.base_point, terms, bond)
        return True

    def _listed(self, raw: bytes) -> Listed:
        # Verified before it was stored; the disk is ours.
        envelope = parse_envelope(raw, self._network, limit=Kind.ARBITER.limit)
        return Listed(envelope, unpack(envelope.body, Announcement, limit=Kind.ARBITER.limit))


def _serves(announcement: Announcement, currency: str | None, method: str | None, amount: int) -> bool:
    """`Announcement.serves` where a part of the trade may be left open."""
    return (
        amount <= announcement.max_amount
        and (currency is None or not announcement.currencies or currency in announcement.currencies)
        and (method is None or not announcement.methods or method in announcement.methods)
    )
