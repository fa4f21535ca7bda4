"""The client's calls about personas, receipts and bonds; a part of `p2pnode.client.Client`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from p2pnode.api import schema
from p2pnode.api.errors import BadRequest
from p2pnode.api.schema import personas as p

A = TypeVar("A", bound=schema.Response)


def path_id(text: str) -> str:
    """An id as it stands in a path. Raises BadRequest."""
    cleaned = text.strip().lower()
    if not 8 <= len(cleaned) <= 64 or cleaned.strip("0123456789abcdef"):
        raise BadRequest(f"“{text[:70]}” is not an id: an id is 8 to 64 hex digits, the whole or its beginning")
    return cleaned


class PersonaCalls(ABC):
    """One typed method per route."""

    @abstractmethod
    async def _get(
        self,
        path: str,
        answer: type[A],
        query: schema.Request | dict[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> A:
        """Ask, and read the answer."""

    @abstractmethod
    async def _write(self, method: str, path: str, answer: type[A], body: schema.Request | None = None) -> A:
        """Ask for a write, once, and read the answer."""

    async def personas(self) -> p.PersonaList:
        """Everybody the user has said something of."""
        return await self._get("/personas", p.PersonaList)

    async def persona(self, persona: str) -> p.PersonaView:
        """What is known of a persona."""
        return await self._get("/persona", p.PersonaView, {"persona": persona})

    async def persona_note(self, persona: str, note: str) -> p.PersonaView:
        """Keep a note on a persona."""
        return await self._write("POST", "/persona/note", p.PersonaView, p.NoteRequest(persona=persona, note=note))

    async def persona_standing(self, persona: str, standing: p.StandingName) -> p.PersonaView:
        """Trust a persona, block it, or neither."""
        request = p.StandingRequest(persona=persona, standing=standing)
        return await self._write("POST", "/persona/standing", p.PersonaView, request)

    async def trade_receipt(self, trade: str) -> p.ReceiptView:
        """Who has signed a trade's receipt."""
        return await self._get(f"/trades/{path_id(trade)}/receipt", p.ReceiptView)

    async def trade_publish(self, trade: str) -> p.ReceiptView:
        """Consent to the publication of a trade's receipt."""
        return await self._write(
            "POST", f"/trades/{path_id(trade)}/receipt", p.ReceiptView, p.PublishRequest(publish=True)
        )

    async def trade_rate(self, trade: str, mark: p.MarkName, text: str = "") -> p.ReceiptView:
        """Rate the counterparty of a trade."""
        return await self._write(
            "POST", f"/trades/{path_id(trade)}/rating", p.ReceiptView, p.RateRequest(mark=mark, text=text)
        )

    async def bonds(self) -> p.BondList:
        """Bonds of the node's persona."""
        return await self._get("/bonds", p.BondList)

    async def bond_create(self, request: p.BondRequest) -> p.BondView:
        """Lock coins as a bond."""
        return await self._write("POST", "/bonds", p.BondView, request)

    async def bond_spend(self, bond: str, request: p.BondSpend) -> p.BondView:
        """Take a bond back."""
        return await self._write("POST", f"/bonds/{path_id(bond)}/spend", p.BondView, request)

    async def bond_search(self, from_height: int) -> p.BondList:
        """Find bonds from the mnemonic."""
        return await self._write("POST", "/bonds/search", p.BondList, p.BondSearch(from_height=from_height))
