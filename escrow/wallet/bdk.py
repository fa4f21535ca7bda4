"""The wallet's engine on BDK: descriptors, which coins are unspent, PSBT signing.

BDK's own chain sources (Electrum, Esplora, compact filters) make `Update`s, which Python can't build; a bitcoind has
none of them. What Python can build is a `ChangeSet`, BDK's stored form. So the ledger's facts are turned into one and a
wallet is loaded from it, each time the facts have changed and somebody asks (docs/adr/0004-wallet-feed.md has the
measurements). Nothing is stored by BDK: its state is a function of the ledger.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import bdkpython as bdk

from escrow.chain.blocks import parse_tx
from escrow.coins import OutPoint, TxOut
from escrow.errors import GateRefused
from escrow.hd import ExtendedKey
from escrow.transactions import Witness, output_bytes, parse, stripped
from escrow.wallet.engine import EngineCoin, Keychain, Snapshot
from protocol.types import Network

_NETWORKS: Final = {
    Network.MAINNET: bdk.Network.BITCOIN,
    Network.TESTNET: bdk.Network.TESTNET,
    Network.SIGNET: bdk.Network.SIGNET,
    Network.REGTEST: bdk.Network.REGTEST,
}
_KEYCHAINS: Final = {Keychain.EXTERNAL: bdk.KeychainKind.EXTERNAL, Keychain.INTERNAL: bdk.KeychainKind.INTERNAL}
_FROM_BDK: Final = {kind: keychain for keychain, kind in _KEYCHAINS.items()}
_TPRV: Final = bytes.fromhex("04358394")
_XPRV: Final = bytes.fromhex("0488ade4")

# Foreign inputs of a PSBT carry nothing that BDK could check; ours carry their full previous transactions.
_SIGNING: Final = bdk.SignOptions(
    trust_witness_utxo=True,
    assume_height=None,
    allow_all_sighashes=False,
    try_finalize=True,
    sign_with_tap_internal_key=False,
    allow_grinding=True,
)


class _Stored(bdk.Persistence):  # type: ignore[misc]  # BDK ships no types
    """Gives BDK the facts; what BDK would store, the ledger has."""

    def __init__(self, facts: bdk.ChangeSet) -> None:
        self._facts = facts

    def initialize(self) -> bdk.ChangeSet:
        return self._facts

    def persist(self, changeset: bdk.ChangeSet) -> None:
        """Nothing to do."""


class BdkEngine:
    """A `WalletEngine` for the BIP84 account 0 of a master key. Its repr shows no secret."""

    def __init__(self, master: ExtendedKey, network: Network) -> None:
        self._network = network
        kind = bdk.NetworkKind.MAIN if network is Network.MAINNET else bdk.NetworkKind.TEST
        secret = bdk.DescriptorSecretKey.from_string(master.xprv(_XPRV if network is Network.MAINNET else _TPRV))
        self._descriptors = {
            keychain: bdk.Descriptor.new_bip84(secret, bdk_keychain, kind)
            for keychain, bdk_keychain in _KEYCHAINS.items()
        }
        self._pair = (self._descriptors[Keychain.EXTERNAL], self._descriptors[Keychain.INTERNAL])
        self._genesis = bdk.Wallet(*self._pair, _NETWORKS[network], bdk.Persister.new_in_memory()).latest_checkpoint()
        self._parsed: dict[bytes, tuple[Any, Any]] = {}
        self._wallet: Any = None

    def __repr__(self) -> str:
        """Name the account by its public descriptor."""
        return f"BdkEngine({self._pair[0]})"

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal public descriptor."""
        return str(self._pair[0]), str(self._pair[1])

    @property
    def signs(self) -> bool:
        """It has the keys."""
        return True

    @property
    def identity(self) -> str:
        """Both public descriptors and the network."""
        return f"{self._network.name} {self._pair[0]} {self._pair[1]}"

    def script(self, keychain: Keychain, index: int) -> bytes:
        """The script at an index."""
        address = self._descriptors[keychain].derive_address(index, _NETWORKS[self._network])
        return bytes(address.script_pubkey().to_bytes())

    def load(self, snapshot: Snapshot) -> None:
        """Make a BDK wallet of the facts."""
        external, internal = self._pair
        blocks = {0: self._genesis.hash}
        anchors, seen, transactions = [], {}, []
        known = self._parsed
        self._parsed = {}
        for fact in snapshot.facts:
            tx, txid = known.get(fact.raw) or _parse(fact.raw)
            self._parsed[fact.raw] = (tx, txid)
            transactions.append(tx)
            if fact.block is None:
                seen[txid] = fact.seen
            else:
                at = bdk.BlockId(height=fact.block.height, hash=bdk.BlockHash.from_bytes(fact.block.hash))
                blocks[at.height] = at.hash
                when = bdk.ConfirmationBlockTime(block_id=at, confirmation_time=fact.block.time)
                anchors.append(bdk.Anchor(confirmation_block_time=when, txid=txid))
        if snapshot.tip.height:
            blocks[snapshot.tip.height] = bdk.BlockHash.from_bytes(snapshot.tip.hash)
        facts = bdk.ChangeSet.from_aggregate(
            descriptor=external,
            change_descriptor=internal,
            network=_NETWORKS[self._network],
            local_chain=bdk.LocalChainChangeSet(
                changes=[bdk.ChainChange(height=height, hash=h) for height, h in sorted(blocks.items())]
            ),
            tx_graph=bdk.TxGraphChangeSet(
                txs=transactions, txouts={}, anchors=anchors, last_seen=seen, first_seen={}, last_evicted={}
            ),
            indexer=bdk.IndexerChangeSet(
                last_revealed={
                    self._descriptors[keychain].descriptor_id(): count - 1
                    for keychain, count in snapshot.revealed.items()
                    if count
                }
            ),
        )
        self._wallet = bdk.Wallet.load(external, internal, bdk.Persister.custom(_Stored(facts)))

    def coins(self) -> tuple[EngineCoin, ...]:
        """What is unspent."""
        return tuple(
            EngineCoin(
                OutPoint(bytes(o.outpoint.txid.serialize()), o.outpoint.vout),
                o.txout.value.to_sat(),
                bytes(o.txout.script_pubkey.to_bytes()),
                _FROM_BDK[o.keychain],
                o.chain_position.confirmation_block_time.block_id.height if o.chain_position.is_confirmed() else None,
            )
            for o in self._wallet.list_unspent()
        )

    def sign(self, raw: bytes, previous: Mapping[int, bytes]) -> dict[int, Witness]:
        """Witnesses of P2WPKH inputs, SIGHASH_ALL. Raises GateRefused."""
        psbt = bdk.Psbt(base64.b64encode(_psbt(raw, previous)).decode())
        self._wallet.sign(psbt, _SIGNING)
        inputs = psbt.input()
        witnesses: dict[int, Witness] = {}
        for index in previous:
            stack = inputs[index].final_script_witness
            if not stack:
                raise GateRefused(f"the wallet could not sign input {index}; nothing was signed")
            witnesses[index] = tuple(bytes(item) for item in stack)
        return witnesses


def _parse(raw: bytes) -> tuple[Any, Any]:
    tx = bdk.Transaction(raw)
    return tx, tx.compute_txid()


def _psbt(raw: bytes, previous: Mapping[int, bytes]) -> bytes:
    """The PSBT (BIP174) of a transaction in which some inputs are told with their full previous transactions."""
    tx = parse(raw)
    out = [b"psbt\xff", _pair(b"\x00", stripped(tx)), b"\x00"]
    for index, spent in enumerate(tx.vin):
        if index in previous:
            output: TxOut = parse_tx(previous[index]).outputs[spent.prevout.n]
            out += [_pair(b"\x00", previous[index]), _pair(b"\x01", output_bytes(output))]
        out.append(b"\x00")
    out.append(b"\x00" * len(tx.vout))
    return b"".join(out)


def _pair(key: bytes, value: bytes) -> bytes:
    return _size(len(key)) + key + _size(len(value)) + value


def _size(count: int) -> bytes:
    """A CompactSize integer."""
    if count < 0xFD:
        return bytes([count])
    return b"\xfd" + count.to_bytes(2, "little") if count <= 0xFFFF else b"\xfe" + count.to_bytes(4, "little")
