"""What once crashed a decoder, and what fuzzing starts from, is read without raising anything unannounced."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from tests.fuzz.reach import decoders, reached
from tests.fuzz.targets import CRASHES, TARGETS, seeds

NOT_FROM_OUTSIDE = {
    "our own database, written by ourselves; a damaged one is tested with the store": (
        "dht/storage.py:Storage._remove", "escrow/wallet/storage.py:*", "p2pnode/*store.py:*", "p2pnode/recall.py:*",
        "p2pnode/cases/store.py:*", "p2pnode/reputation/*", "p2pnode/offerbook.py:*", "p2pnode/ownoffers.py:*",
        "p2pnode/contacts.py:Contacts.*", "p2pnode/executor.py:*", "p2pnode/contracting.py:*", "p2pnode/services/*",
        "protocol/case_events.py:load_case", "protocol/trade_state.py:load_state",
        "escrow/wallet/bdk.py:BdkEngine.load",
        "p2pnode/arbiters.py:ArbiterDirectory.*", "p2pnode/secondfactor.py:*",
    ),
    "our own files, configuration and terminal": (
        "p2pnode/config.py:*", "p2pnode/datadir.py:*", "p2pnode/keystore.py:*", "p2pnode/api/endpoint.py:*",
        "p2pnode/log.py:*", "p2pnode/prices.py:PriceFeeds._read_file", "escrow/chain/peerpool.py:_read",
        "escrow/chain/tls.py:parse_pin", "escrow/chain/headers.py:_genesis", "escrow/chain/headers.py:_anchor",
        "escrow/seed.py:*", "escrow/hd.py:*", "escrow/wallet/account.py:*", "p2pnode/regtest.py:*",
        "p2pnode/backup.py:open_backup",  # authenticated under the key of the seed before anything is parsed
    ),
    "what our own node answers to its own client": ("p2pnode/client.py:*",),
    "the user's own bitcoind, behind a password": (
        "escrow/chain/bitcoind.py:*", "escrow/chain/rpc.py:*", "escrow/chain/source.py:*",
    ),
    "arithmetic with ids of our own, or what was decoded before": (
        "dht/engine.py:*", "dht/probe.py:*", "dht/upkeep.py:*", "dht/sync.py:_after", "dht/desk.py:Desk.contacts",
        "dht/desk.py:Desk._too_many",
        "dht/messages.py:part_end", "dht/reading.py:*", "dht/writing.py:*",
        "escrow/keys.py:*", "escrow/script.py:_decimal",
        "escrow/psbt.py:text", "escrow/psbtplan.py:payout_of", "escrow/wallet/labels.py:write_labels",
        "escrow/wallet/bdk.py:BdkEngine.sign", "protocol/wire.py:_decoder",
        "p2pnode/api/server.py:ApiServer._send_events",
    ),
    "fixed fields of an answer whose message is parsed by a target": (
        "dht/node.py:DhtNode._ask_by_udp", "dht/watch.py:Watch.answered",
    ),
    "one envelope or struct that `envelope`, `bodies` and `readers` decode": (
        "p2pnode/intake.py:*", "p2pnode/attachments.py:*", "p2pnode/cases/intake.py:*",
        "p2pnode/cases/recall.py:*", "p2pnode/contractfile.py:_checked", "protocol/mailbox.py:open_answer",
    ),
    "the first bytes of a stream: a number or a key, no more; `pipes` reads them through the door": (
        "p2pnode/reach/probe.py:*", "p2pnode/reach/relay.py:*",
    ),
    "a logged-in page of ours; the fields are read by `forms`": ("p2pnode/web/page.py:*",),
}  # fmt: skip
"""Why some of what takes bytes apart has no target."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_and_no_old_crash_raises(name: str) -> None:
    corpus = seeds(name)
    assert corpus
    # All crashes, and as many of the vectors as take a moment.
    crashes = [path.read_bytes() for path in (CRASHES / name).glob("*")]
    for data in [*crashes, b"", *corpus[:: 1 + len(corpus) // 400]]:
        TARGETS[name](data)


def test_whatever_takes_bytes_apart_has_a_target_or_a_reason() -> None:
    """Who adds a decoder finds it named here until a target gets to it."""
    patterns = [pattern for several in NOT_FROM_OUTSIDE.values() for pattern in several]
    every, fuzzed = decoders(), reached()
    left = {name for name in every - fuzzed if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert left == set()


def test_the_list_of_decoders_is_not_empty_by_mistake() -> None:
    every, fuzzed = decoders(), reached()
    for name in (
        "dht/messages.py:value_of",
        "protocol/wire.py:parse_envelope",
        "protocol/streams.py:Streams._on_open",
        "escrow/chain/p2pwire.py:read_addresses",
        "p2pnode/reach/natpmp.py:map_port",
    ):
        assert name in every & fuzzed
