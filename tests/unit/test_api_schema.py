"""What requests mean, and that every view can be shown."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from p2pnode.api import errors, services
from p2pnode.api import schema as s
from p2pnode.api.errors import problem_of, status_of
from p2pnode.api.openapi import document
from p2pnode.api.routes import ROUTES
from p2pnode.console import tables
from p2pnode.money import BadPrice
from protocol.errors import P2PError
from protocol.offer import FixedPrice, MarketPrice
from protocol.types import MAX_MONEY

METHODS = (s.MethodDetails(method="sepa", details={"iban": "x"}),)


def draft(**terms: object) -> s.OfferDraft:
    base = {
        "side": "sell",
        "amount_min_sats": 1,
        "amount_max_sats": 2,
        "currency": "EUR",
        "methods": [{"method": "sepa", "details": {"iban": "x"}}],
    }
    return msgspec.convert(base | terms, s.OfferDraft)


class TestPrices:
    def test_a_price_is_in_whole_units_and_becomes_minor_ones(self) -> None:
        assert draft(price="65000.05").protocol_price() == FixedPrice(6_500_005)
        assert draft(price="65000", currency="JPY").protocol_price() == FixedPrice(65_000)
        market = draft(margin_ppm=-5_000, price_limit="60000", feeds="median").protocol_price()
        assert market == MarketPrice(-5_000, "median", 6_000_000)
        assert draft(margin_ppm=0).protocol_price() == MarketPrice(0, "default", None)

    @pytest.mark.parametrize(
        "terms",
        [{}, {"price": "1", "margin_ppm": 0}, {"price": "1", "price_limit": "2"}, {"price_limit": "2"}],
    )
    def test_a_price_and_a_margin_exclude_each_other(self, terms: dict[str, object]) -> None:
        with pytest.raises(s.BadOffer):
            draft(**terms).protocol_price()

    @pytest.mark.parametrize("terms", [{"price": "1.001"}, {"price": "0"}, {"price": "1.5", "currency": "JPY"}])
    def test_a_price_that_would_be_rounded_is_refused(self, terms: dict[str, object]) -> None:
        with pytest.raises(BadPrice):
            draft(**terms).protocol_price()

    @pytest.mark.parametrize("price", ["1,0", "-1", "1e3", "", " 1", "1.", "1\n", 1, 1.5])
    def test_a_price_that_is_no_plain_decimal_does_not_parse(self, price: object) -> None:
        with pytest.raises(msgspec.ValidationError):
            draft(price=price)

    @pytest.mark.parametrize(
        ("edit", "present", "wanted"),
        [
            (s.OfferEdit(), FixedPrice(5), FixedPrice(5)),
            (s.OfferEdit(terms="x"), MarketPrice(1, "f", 2), MarketPrice(1, "f", 2)),
            (s.OfferEdit(price="2"), MarketPrice(1, "f", 2), FixedPrice(200)),
            (s.OfferEdit(margin_ppm=7), FixedPrice(5), MarketPrice(7, "default", None)),
            (s.OfferEdit(margin_ppm=7), MarketPrice(1, "f", 2), MarketPrice(7, "f", 2)),
            (s.OfferEdit(price_limit="3"), MarketPrice(1, "f", 2), MarketPrice(1, "f", 300)),
            (s.OfferEdit(margin_ppm=7, price_limit="3"), FixedPrice(5), MarketPrice(7, "default", 300)),
        ],
    )
    def test_an_edit_changes_what_it_names_and_nothing_else(
        self, edit: s.OfferEdit, present: FixedPrice | MarketPrice, wanted: FixedPrice | MarketPrice
    ) -> None:
        assert edit.protocol_price("EUR", present) == wanted

    @pytest.mark.parametrize(
        ("edit", "present"),
        [
            (s.OfferEdit(price="2", margin_ppm=1), FixedPrice(5)),
            (s.OfferEdit(price="2", price_limit="1"), MarketPrice(1, "f", 2)),
            (s.OfferEdit(price_limit="1"), FixedPrice(5)),
        ],
    )
    def test_an_edit_that_contradicts_itself_is_refused(
        self, edit: s.OfferEdit, present: FixedPrice | MarketPrice
    ) -> None:
        with pytest.raises(s.BadOffer):
            edit.protocol_price("EUR", present)


class TestErrors:
    def test_every_error_becomes_a_problem_with_a_status_that_fits_its_fault(self) -> None:
        waiting: list[type[P2PError]] = [P2PError]
        while waiting:
            cls = waiting.pop()
            waiting += cls.__subclasses__()
            if cls.__init__ is not P2PError.__init__:
                continue
            problem = problem_of(cls("one line"), "/x")
            assert problem.status == status_of(cls())
            server_side = problem.status >= 500
            assert {"user": not server_side, "chain": server_side, "peer": True, "ours": server_side}[
                problem.fault
            ] or problem.status == 409
            assert problem.title

    def test_the_promise_of_services_is_written_where_they_are_defined(self) -> None:
        assert "nothing was changed" in (services.__doc__ or "")
        assert errors.OutcomeUnknown().action.value == "tell-user"


class TestDocument:
    def test_the_document_is_the_same_each_time(self) -> None:
        assert document("1") == document("1")

    def test_no_route_is_described_twice(self) -> None:
        assert len({(r.method, r.path) for r in ROUTES}) == len(ROUTES)


TEXT = st.text(max_size=30)
SATS = st.integers(min_value=0, max_value=MAX_MONEY)


VIEWS: list[type[s.Response]] = [t for t in dict.fromkeys(r.answer for r in ROUTES) if t is not s.EventPage]


class TestTables:
    @pytest.mark.parametrize("answer", VIEWS, ids=lambda t: str(t.__name__))
    def test_every_view_has_a_table_whatever_is_in_it(self, answer: type[s.Response]) -> None:
        @settings(max_examples=20)
        @given(view=_views(answer))
        def shows(view: msgspec.Struct) -> None:
            out = io.StringIO()
            Console(file=out, width=200, highlight=False).print(tables.render(view))
            shown = out.getvalue()
            assert not any(ord(c) < 32 and c != "\n" for c in shown)

        shows()


def _views(cls: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Values of a view, made from its own JSON schema types."""
    fields: dict[str, st.SearchStrategy[object]] = {}
    for f in msgspec.structs.fields(cls):
        fields[f.name] = _values(msgspec.inspect.type_info(f.type))
    return st.fixed_dictionaries(fields).map(lambda values: cls(**values))


def _values(info: msgspec.inspect.Type) -> st.SearchStrategy[object]:  # noqa: PLR0911  (one case per type)
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return _values(inner)
        case msgspec.inspect.IntType():
            return SATS
        case msgspec.inspect.StrType():
            return TEXT
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_values(t) for t in types])
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_values(item), max_size=2).map(tuple)
        case msgspec.inspect.DictType():
            return st.dictionaries(TEXT, TEXT, max_size=2)
        case msgspec.inspect.StructType(cls=inner_cls):
            return _views(inner_cls)
        case _:
            raise AssertionError(info)
