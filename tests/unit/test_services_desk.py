"""The arbiter's desk and the parties' view of it, over whole nodes: what is shown, what is refused, what is exact."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.attachments import AttachmentStore
from p2pnode.blocktime import BlockTimes
from p2pnode.services.cases import CaseService, SecondLook
from p2pnode.services.disputes import DisputeService
from p2pnode.services.views import TradeViews
from protocol import dispute_events as dv
from protocol.bundle import verify_bundle
from protocol.errors import NotFound, P2PError
from protocol.types import Side
from tests.court import Court, CourtNode
from tests.malice.test_disputes import heard, judge_state, traded
from tests.pictures import TEXT, png
from tests.unit.services_support import describe_escrow
from tests.world import NETWORK

PICTURE = png(300, 200, pad=70_000)


@dataclass
class Bench:
    """A heard case, seen through the services of arbiter and buyer."""

    court: Court
    desk: CaseService
    buyer: DisputeService
    files: dict[str, AttachmentStore]

    @property
    def case(self) -> str:
        return traded(self.court).trade_id.hex()[:12]

    async def show(self, data: bytes, name: str) -> str:
        """The buyer shows the arbiter a file; returns its content's name."""
        attachment = self.files["buyer"].add(data, name)
        ref = d.FileRef(content=attachment.content.hex(), name=name)
        await self.buyer.evidence(self.case, d.EvidenceRequest(text=f"look: {name}", attachments=(ref,)))
        await self.court.until(lambda: not self.court.buyer.engine.trades.recipients(), "evidence delivered")
        return attachment.content.hex()

    def fetched(self, data: bytes, name: str) -> None:
        """The arbiter's node has it."""
        self.files["main"].add(data, name)


async def bench(tmp_path: Path) -> Bench:
    court = await heard(Court(tmp_path, Side.SELL))
    files = {}
    for name, node in (("buyer", court.buyer), ("main", court.main)):
        assert isinstance(node, CourtNode)
        files[name] = AttachmentStore(node.engine.trades.database, bytes(32))
        node.engine.files = files[name]
    court.main.desk.intake.files = files["main"]

    def blocks(node: CourtNode) -> BlockTimes:
        return BlockTimes(lambda: court.chain.height, node.clock)

    main, buyer = court.main, court.buyer
    assert isinstance(buyer, CourtNode)
    engine = main.engine
    desk = CaseService(
        main.desk,
        engine.conversations,
        engine.divergences,
        main.wallet,  # type: ignore[arg-type]
        blocks(main),
        files["main"],
    )
    views = TradeViews(buyer.engine.trades, NETWORK, describe_escrow, blocks(buyer))
    return Bench(court, desk, DisputeService(buyer.engine, views, files["buyer"]), files)


class TestEvidence:
    async def test_files_are_numbered_and_held_against_the_log(self, tmp_path: Path) -> None:
        found = await bench(tmp_path)
        await found.show(PICTURE, "../receipt.png")
        await found.show(TEXT, "note.txt")
        first, second = (await found.desk.exhibits(found.case)).items
        assert (first.number, first.name, first.media, first.by) == (1, "_receipt.png", "image/png", "buyer")
        assert (first.here, first.matches, first.facts) == (False, None, ())
        assert second.note == "look: note.txt"
        assert first.height == found.court.chain.height, "by its owner's word"
        found.fetched(PICTURE, "x.png")
        first, second = (await found.desk.exhibits(found.case)).items
        assert (first.here, first.matches) == (True, True)
        assert {f.name: f.value for f in first.facts}["dimensions"] == "300 x 200 points"
        file = await found.desk.exhibit(found.case, 1)
        assert b64decode(file.data) == PICTURE
        for number in (2, 3, 99):
            with pytest.raises(NotFound):
                await found.desk.exhibit(found.case, number)
        own = (await found.buyer.exhibits(found.case)).items
        assert [(item.by, item.to, item.matches) for item in own] == [("you", "arbiter", True)] * 2
        await found.court.end()

    async def test_file_that_was_altered_where_it_lies_is_no_proof_any_more(self, tmp_path: Path) -> None:
        found = await bench(tmp_path)
        await found.show(PICTURE, "receipt.png")
        found.fetched(PICTURE, "receipt.png")
        database = found.files["main"].database.connection
        database.execute("UPDATE attachment_parts SET data = zeroblob(length(data)) WHERE part = 0")
        with pytest.raises(P2PError):
            await found.desk.exhibits(found.case)
        await found.court.end()


class TestDeciding:
    async def test_preview_is_what_is_paid_to_the_satoshi(self, tmp_path: Path) -> None:
        found = await bench(tmp_path)
        quote = await found.desk.quote(found.case, d.QuoteRequest(buyer_share_ppm=700_000))
        parts = (quote.buyer_sats, quote.seller_sats, quote.arbiter_sats, quote.mining_fee_sats)
        assert sum(parts) == quote.escrow_value_sats
        request = d.RuleRequest(
            buyer_share_ppm=700_000, reason="wrong-amount", text="30% is missing",
            buyer_sats=quote.buyer_sats, seller_sats=quote.seller_sats,
        )  # fmt: skip
        with pytest.raises(SecondLook):
            await found.desk.rule(found.case, replace(request, buyer_sats=quote.buyer_sats + 1))
        assert judge_state(found.court.main).decision is None
        before = {node: node.wallet.worth() for node in (*found.court.both, found.court.main)}
        await found.desk.rule(found.case, request)
        await found.court.finish()
        got = [node.wallet.worth() - before[node] for node in (found.court.buyer, found.court.seller, found.court.main)]
        assert got == [quote.buyer_sats, quote.seller_sats, quote.arbiter_sats]
        shown = await found.desk.show(found.case)
        assert shown.ruling is not None
        assert (shown.ruling.reason, shown.ruling.text) == ("wrong-amount", "30% is missing")
        await found.court.end()

    async def test_bundle_of_either_side_verifies(self, tmp_path: Path) -> None:
        found = await bench(tmp_path)
        await found.show(PICTURE, "receipt.png")
        found.fetched(PICTURE, "receipt.png")
        await found.court.main.decide(1_000_000)
        await found.court.finish()
        for exported in (await found.desk.bundle(found.case), await found.buyer.bundle(found.case)):
            verdict = verify_bundle(b64decode(exported.bundle), EscrowChecks())
            assert verdict.findings == ()
            assert [present for _, present in verdict.attachments] == [True]
        await found.court.end()


class TestTime:
    async def test_deadlines_are_blocks_with_an_estimate_on_every_side(self, tmp_path: Path) -> None:
        found = await bench(tmp_path)
        height, now = found.court.chain.height, found.court.main.clock.now()
        (case,) = (await found.desk.list(open_only=True)).cases
        assert {x.name for x in case.deadlines} == {"hearing", "reminder", "ruling"}
        for view in case.deadlines:
            assert view.height is not None
            assert (view.blocks, view.estimated_at) == (view.height - height, now + (view.height - height) * 600)
        shown = await found.buyer.show(found.case)
        names = {x.name: x.height for x in shown.deadlines}
        assert names["arbiter"] is not None
        assert names["backup"] == traded(found.court).backup_from, (
            "from when the backup works, told before it is needed"
        )
        await found.court.end()

    async def test_buyers_window_is_told_in_every_view_and_moves_with_an_extension(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.fund()
        state = traded(court)
        blocks = BlockTimes(lambda: court.chain.height, court.buyer.clock)
        for node in court.both:
            views = TradeViews(node.engine.trades, NETWORK, describe_escrow, blocks)
            (listed,) = views.list(open_only=True)
            (due,) = listed.deadlines
            assert (due.name, due.height) == ("payment", state.window_ends)
        court.give(court.seller, dv.GrantExtension(12))
        await court.until(lambda: traded(court).extension == 12, "more time")
        for node in court.both:
            views = TradeViews(node.engine.trades, NETWORK, describe_escrow, blocks)
            (due,) = views.show(state.trade_id).deadlines
            assert due.height == (state.window_ends or 0) + 12
        await court.end()
