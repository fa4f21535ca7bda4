"""Arbiters that this node knows, and its persona as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2pnode.api.schema import AnnounceRequest, ArbiterList, ArbiterView
from p2pnode.api.services import RoleMissing
from p2pnode.arbiters import ArbiterDirectory, ArbiterTerms, Listed
from p2pnode.publisher import Publisher
from protocol.announcement import FeeTerms
from protocol.bond import Bond
from protocol.identity import SigningKey, persona_text
from protocol.score import ArbiterMerit

PLACING_SECONDS: Final = 5.0
"""How long an answer waits for the DHT to take a new record; the publisher goes on after it."""


class ArbiterService:
    """`api.services.Arbiters` over the directory."""

    def __init__(
        self,
        directory: ArbiterDirectory,
        publisher: Publisher | None = None,
        key: SigningKey | None = None,
        base_point: bytes | None = None,
        bond: Callable[[], Bond | None] | None = None,
    ) -> None:
        """`key` is the persona's, `base_point` its public arbiter base key; without them this node is no arbiter.

        `bond` gives the bond that the persona can show now.
        """
        self._bond = bond
        self._directory = directory
        self._publisher = publisher
        self._key = key
        self._base_point = base_point

    async def announce(self, request: AnnounceRequest) -> ArbiterView:
        """Publish the next announcement of the node's own persona. Raises RoleMissing, BadAnnouncement."""
        if self._key is None or self._base_point is None or self._publisher is None:
            raise RoleMissing("this node is no arbiter: add the role arbiter to its configuration and start it again")
        terms = ArbiterTerms(
            fee=FeeTerms(share=request.fee_ppm, floor=request.fee_floor_sats, cap=request.fee_cap_sats),
            currencies=request.currencies,
            methods=request.methods,
            languages=request.languages,
            max_amount=request.max_amount_sats,
            response_blocks=request.response_blocks,
            policy=request.policy,
            lifetime=request.lifetime_seconds,
        )
        bond = None if self._bond is None else self._bond()
        listed = await self._directory.announce(self._key, self._base_point, terms, bond)
        await self._publisher.placed(listed.envelope, PLACING_SECONDS)
        return self._view(listed)

    async def list(self, currency: str | None, method: str | None, language: str | None = None) -> ArbiterList:
        """Those with a living announcement that serve `currency`, `method` and `language` (None: any), best first."""
        await self._directory.refresh()
        # Bonds may have been spent, and new ones buried, since the last look at the DHT.
        await self._directory.rank()
        found = self._directory.find(currency, method, language=language)
        return ArbiterList(arbiters=tuple(self._view(listed, place) for place, listed in enumerate(found, 1)))

    def _view(self, listed: Listed, place: int = 0) -> ArbiterView:
        value = listed.announcement
        merit = self._directory.ranking.merit(listed)
        state = self._directory.ranking.bond_state(listed)
        return ArbiterView(
            persona=persona_text(value.persona),
            announcement=listed.envelope.id.hex(),
            mine=self._key is not None and value.persona == self._key.public,
            fee_ppm=value.fee.share,
            fee_floor_sats=value.fee.floor,
            fee_cap_sats=value.fee.cap,
            currencies=value.currencies,
            methods=value.methods,
            languages=value.languages,
            max_amount_sats=value.max_amount,
            response_blocks=value.response_blocks,
            policy=value.policy,
            bond_sats=None if value.bond is None else value.bond.value,
            created=value.created,
            expires=value.expires,
            rank=place,
            points=merit.points,
            why=_why(merit, state),
            bond_state=state,
            bond_lock_height=None if value.bond is None else value.bond.lock_height,
        )


def _why(merit: ArbiterMerit, bond_state: str) -> tuple[str, ...]:
    """What the points are made of, in words."""
    bond = {
        "none": "no bond",
        "stands": f"bond +{merit.bond}",
        "spent": "bond spent +0",
        "false": "bond not on the chain +0",
        "contested": "bond shown for another persona as well +0",
        "unchecked": "bond not checked yet +0",
    }[bond_state]
    parts = [bond, f"rulings in time +{merit.rulings}", f"weeks known +{merit.weeks}", f"fee -{merit.fee}"]
    return tuple([*parts, f"late rulings -{merit.late}"] if merit.late else parts)
