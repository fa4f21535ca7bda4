"""The wallet's engine without BDK: our own BIP32 and scripts, libsecp256k1 through coincurve.

bdkpython has no wheel for every machine that runs a node (none for Linux on aarch64). What an engine must do is little:
derive P2WPKH scripts, say which outputs are unspent by the ledger's facts, and sign. Signatures are byte for byte BDK's
and Bitcoin Core's: RFC 6979, ground to a low R.

`WatchEngine` is the same without keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from bitcoin.core import CTransaction, Hash
from coincurve import PrivateKey

from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.coins import OutPoint, TxOut
from escrow.errors import GateRefused
from escrow.hd import ExtendedKey
from escrow.signatures import SIGHASH_ALL, sign_ecdsa
from escrow.transactions import Witness, output_bytes, p2wpkh_code, parse
from escrow.wallet.account import Account, Keychain, SigningAccount
from escrow.wallet.engine import EngineCoin, Fact, Snapshot, WatchOnly
from protocol.types import Network, Txid

_SIGHASH: Final = bytes([SIGHASH_ALL])


class WatchEngine:
    """A `WalletEngine` that has public keys only."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._scripts: dict[bytes, tuple[Keychain, int]] = {}
        self._parsed: dict[bytes, ParsedTx] = {}
        self._facts: tuple[tuple[ParsedTx, Fact], ...] = ()

    def __repr__(self) -> str:
        """Name the account by its public descriptor."""
        return f"{type(self).__name__}({self.descriptors[0]})"

    @property
    def identity(self) -> str:
        """Both public descriptors and the network."""
        return self._account.identity

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal public descriptor."""
        return self._account.descriptors

    @property
    def signs(self) -> bool:
        """It has no keys."""
        return False

    def script(self, keychain: Keychain, index: int) -> bytes:
        """The script at an index; from then on its coins are recognised."""
        script = self._account.script(keychain, index)
        self._scripts[script] = (keychain, index)
        return script

    def load(self, snapshot: Snapshot) -> None:
        """Replace all that was known."""
        known, self._parsed = self._parsed, {}
        for fact in snapshot.facts:
            self._parsed[fact.raw] = known.get(fact.raw) or parse_tx(fact.raw)
        self._facts = tuple((self._parsed[fact.raw], fact) for fact in snapshot.facts)

    def coins(self) -> tuple[EngineCoin, ...]:
        """What is unspent."""
        standing = standing_of(self._facts)
        spent = {o for tx, _ in standing for o in _spends(tx)}
        found: list[EngineCoin] = []
        for tx, fact in standing:
            for vout, output in enumerate(tx.outputs):
                place = self._scripts.get(output.script_pubkey)
                outpoint = tx.outpoint(vout)
                if place is not None and outpoint not in spent:
                    height = None if fact.block is None else fact.block.height
                    found.append(EngineCoin(outpoint, output.value, output.script_pubkey, place[0], height))
        return tuple(found)

    def sign(self, raw: bytes, previous: Mapping[int, bytes]) -> dict[int, Witness]:  # noqa: ARG002 - never used
        """Nothing can be signed here. Raises WatchOnly."""
        raise WatchOnly


class NativeEngine(WatchEngine):
    """A `WalletEngine` for the BIP84 account 0 of a master key. Its repr shows no secret."""

    def __init__(self, master: ExtendedKey, network: Network) -> None:
        self._keys = SigningAccount(master, network)
        super().__init__(self._keys)

    @property
    def signs(self) -> bool:
        """It has the keys."""
        return True

    def sign(self, raw: bytes, previous: Mapping[int, bytes]) -> dict[int, Witness]:
        """Witnesses of P2WPKH inputs, SIGHASH_ALL. Raises GateRefused."""
        tx = parse(raw)
        hasher = _InputHasher(tx)
        witnesses: dict[int, Witness] = {}
        for index, source in previous.items():
            spent = parse_tx(source)
            prevout = OutPoint(bytes(tx.vin[index].prevout.hash), tx.vin[index].prevout.n)
            # The amount is signed: it must be that of the very output that is spent.
            output = spent.outputs[prevout.vout] if spent.txid == prevout.txid else None
            place = None if output is None else self._scripts.get(output.script_pubkey)
            if output is None or place is None:
                raise GateRefused(f"the wallet could not sign input {index}; nothing was signed")
            secret = self._keys.secret(*place)
            signature = sign_ecdsa(secret, hasher.sighash(index, output)) + _SIGHASH
            witnesses[index] = (signature, PrivateKey(secret).public_key.format())
        return witnesses


class _InputHasher:
    """BIP143 hashes of the P2WPKH inputs of one transaction, its common parts hashed once."""

    def __init__(self, tx: CTransaction) -> None:
        self._tx = tx
        self._prevouts = Hash(b"".join(i.prevout.serialize() for i in tx.vin))
        self._sequences = Hash(b"".join(i.nSequence.to_bytes(4, "little") for i in tx.vin))
        self._outputs = Hash(b"".join(output_bytes(TxOut(o.nValue, bytes(o.scriptPubKey))) for o in tx.vout))

    def sighash(self, index: int, spent: TxOut) -> bytes:
        """What a SIGHASH_ALL signature of an input that spends `spent` covers."""
        own = self._tx.vin[index]
        code = p2wpkh_code(spent.script_pubkey)
        return bytes(
            Hash(
                self._tx.nVersion.to_bytes(4, "little", signed=True)
                + self._prevouts
                + self._sequences
                + own.prevout.serialize()
                + bytes([len(code)])
                + code
                + spent.value.to_bytes(8, "little")
                + own.nSequence.to_bytes(4, "little")
                + self._outputs
                + self._tx.nLockTime.to_bytes(4, "little")
                + SIGHASH_ALL.to_bytes(4, "little")
            )
        )


def standing_of(facts: Iterable[tuple[ParsedTx, Fact]]) -> list[tuple[ParsedTx, Fact]]:
    """The transactions that can all be true: conflicts are decided as BDK decides them.

    What is in a block stands. Of those that wait, the one seen last wins over what it conflicts with (the greater txid,
    when at the same time), and brings along its ancestors; whatever spends from a loser falls with it.
    """
    everything = {tx.txid: (tx, fact) for tx, fact in facts}
    spender: dict[OutPoint, Txid] = {}
    standing: dict[Txid, tuple[ParsedTx, Fact]] = {}
    fallen: set[Txid] = set()

    def ancestry(txid: Txid) -> list[Txid] | None:
        """`txid` and those of its ancestors that are not decided, oldest first; None if any of them can't stand."""
        order: list[Txid] = []
        waiting, seen = [(txid, False)], {txid}
        claimed: dict[OutPoint, Txid] = {}
        while waiting:
            current, done = waiting.pop()
            if done:
                order.append(current)
                continue
            waiting.append((current, True))
            for spent in _spends(everything[current][0]):
                rival = spender.get(spent, claimed.get(spent))
                if rival is not None and rival != current:
                    return None
                claimed[spent] = current
                parent = spent.txid
                if parent in fallen:
                    return None
                if parent in everything and parent not in standing and parent not in seen:
                    seen.add(parent)
                    waiting.append((parent, False))
        return order

    ranked = sorted(
        everything, key=lambda t: (everything[t][1].block is not None, everything[t][1].seen, t), reverse=True
    )
    for txid in ranked:
        if txid in standing or txid in fallen:
            continue
        order = ancestry(txid)
        if order is None:
            fallen.add(txid)
            continue
        for one in order:
            standing[one] = everything[one]
            spender.update(dict.fromkeys(_spends(everything[one][0]), one))
    return list(standing.values())


def _spends(tx: ParsedTx) -> tuple[OutPoint, ...]:
    """What conflicts are about: the one input of every coinbase transaction is the same."""
    return () if tx.is_coinbase else tx.spends
