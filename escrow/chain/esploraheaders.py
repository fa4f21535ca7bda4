"""Block headers from an Esplora server, which sends them ten at a time, taken apart into fields.

Each is put together again and must hash to the name that the server gives it; `headers` checks their chain.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from escrow.chain.base import BackendError, BackendUnreachable, ProofFailed
from escrow.chain.esplorahttp import EsploraHttp
from escrow.chain.headers import HEADER_BYTES, NotConnected, hash256
from escrow.chain.headerstore import HeaderStore
from escrow.coins import txid_bytes
from protocol.types import Hash32, Height

_log = logging.getLogger(__name__)

_A_PAGE: Final = 10
_PAGES_AT_ONCE: Final = 30
"""Pages that are fetched before they are checked and kept."""
_STEPS: Final = (0, 6, 100, 2_016)
"""How far below our tip headers are asked for until they connect."""


class EsploraHeaders:
    """What `HeaderStore`s learn of one server."""

    def __init__(self, http: EsploraHttp) -> None:
        """Ask through `http`."""
        self._http = http

    async def follow(self, store: HeaderStore) -> None:
        """Learn up to the block that the server names as its tip. Raises ProofFailed, BackendUnreachable."""
        tip = self._hash(await self._http.text("/blocks/tip/hash"))
        if tip == store.chain.tip_hash:
            return
        height = self._height(await self._http.text("/blocks/tip/height"))
        try:
            await self.learn(store, height)
            if store.chain.height_of(tip) is None and height > store.chain.height:
                raise ProofFailed(f"the Esplora server {self._http.name} names a newest block that it does not show")
            if store.chain.height_of(tip) is None and height > store.chain.anchor.height:
                # Another branch that is not longer; it may have more work.
                await self._from_below(store, height)
        finally:
            await store.save()

    async def learn(self, store: HeaderStore, height: Height) -> None:
        """Learn up to a height. Raises BadHeader."""
        try:
            await self._take(store, store.chain.height + 1, height)
        except NotConnected:
            await self._from_below(store, height)

    async def _from_below(self, store: HeaderStore, height: Height) -> None:
        """Step back below our tip until the server's headers hang on ours. Raises NotConnected."""
        lowest = store.chain.anchor.height + 1
        for step in _STEPS[1:]:
            start = max(lowest, min(height, store.chain.height) + 1 - step)
            try:
                await self._take(store, start, height)
            except NotConnected:
                if start == lowest or step == _STEPS[-1]:
                    raise
                continue
            return

    async def _take(self, store: HeaderStore, start: Height, height: Height) -> None:
        """Offer the headers from `start` to `height`; a branch is kept together until it has more work than ours."""
        branch: list[bytes] = []
        while start <= height:
            pages = range(start, min(height, start + _PAGES_AT_ONCE * _A_PAGE - 1) + 1, _A_PAGE)
            tops = [min(height, page + _A_PAGE - 1) for page in pages]
            answers = await asyncio.gather(*(self._page(top) for top in tops))
            branch += [raw for page, raws in zip(pages, answers, strict=True) for h, raw in raws if h >= page]
            store.add(branch)
            if store.chain.height_of(hash256(branch[-1])) is not None:
                branch = []
            start = tops[-1] + 1
            if start <= height:
                _log.info("headers up to block %d of %d", store.chain.height, height)
                await store.save()

    async def _page(self, top: Height) -> list[tuple[Height, bytes]]:
        """The headers of the blocks that end at `top`, lowest first, each put together from its fields."""
        answer = await self._http.json(f"/blocks/{top}")
        try:
            found = {int(entry["height"]): _header(entry) for entry in answer}
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent headers that do not parse") from e
        heights = sorted(found)
        # The chain may have been reorganised between two pages, or the server sends something else.
        if not heights or heights[-1] != top or heights != list(range(heights[0], top + 1)):
            raise BackendUnreachable(f"the Esplora server {self._http.name} sent other headers than were asked for")
        return [(h, found[h]) for h in heights]

    def _hash(self, text: str | None) -> Hash32:
        try:
            return txid_bytes(text or "")
        except ValueError as e:
            raise BackendError(f"the Esplora server {self._http.name} sent something that is no block's name") from e

    def _height(self, text: str | None) -> Height:
        if text is None or not text.isdecimal() or len(text) > 9:
            raise BackendError(f"the Esplora server {self._http.name} sent something that is no height")
        return int(text)


def _header(entry: dict[str, Any]) -> bytes:
    """The 80 bytes of a header from a block's fields. Raises ValueError if they are not those of its name."""
    before = entry.get("previousblockhash")
    raw = (
        (int(entry["version"]) & 0xFFFF_FFFF).to_bytes(4, "little")
        + (txid_bytes(before) if before else bytes(32))
        + txid_bytes(entry["merkle_root"])
        + b"".join(int(entry[field]).to_bytes(4, "little") for field in ("timestamp", "bits", "nonce"))
    )
    if len(raw) != HEADER_BYTES or hash256(raw) != txid_bytes(entry["id"]):
        raise ValueError("the fields are not those of the block")
    return raw
