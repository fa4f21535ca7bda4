"""Bitcoin addresses to output scripts and back (BIP173, BIP350, Base58Check).

Our own because the alternatives fall short: python-bitcoinlib knows no Bech32m and picks the network from a global; BDK
is not there on every platform. Every script of ours is native segwit; old addresses are understood so that a
user can pay to them.
"""

from __future__ import annotations

from typing import Final

from escrow.hd import base58check_decode
from protocol.errors import UserError
from protocol.types import Network

HRP: Final = {Network.MAINNET: "bc", Network.TESTNET: "tb", Network.SIGNET: "tb", Network.REGTEST: "bcrt"}
"""Human-readable parts; testnet and signet share theirs."""

_CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUE: Final = {c: i for i, c in enumerate(_CHARSET)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32: Final = 1
_BECH32M: Final = 0x2BC830A3
# Version byte of a Base58 address: whether it is for mainnet, whether it pays to a script hash.
_BASE58: Final = {0x00: (True, False), 0x05: (True, True), 0x6F: (False, False), 0xC4: (False, True)}


class BadAddress(UserError):
    """That is not a valid Bitcoin address: check for a missing or mistyped character."""

    code = 3220


class WrongNetworkAddress(UserError):
    """That address belongs to another Bitcoin network."""

    code = 3221


def script_of(address: str, network: Network) -> bytes:
    """The output script that `address` stands for.

    Raises BadAddress, or WrongNetworkAddress when it is valid on another network than `network`.
    """
    text = address.strip()
    if not 0 < len(text) <= 90:
        raise BadAddress
    hrp = text.lower().rpartition("1")[0]
    if hrp in HRP.values():
        if hrp != HRP[network]:
            raise _wrong_network([n for n, h in HRP.items() if h == hrp], network)
        version, program = _decode_segwit(text)
        return bytes([version + 0x50 if version else 0, len(program)]) + program
    try:
        payload = base58check_decode(text)
    except ValueError as e:
        raise BadAddress from e
    if len(payload) != 21 or payload[0] not in _BASE58:
        raise BadAddress
    main, to_script = _BASE58[payload[0]]
    if main != (network is Network.MAINNET):
        raise _wrong_network([n for n in Network if (n is Network.MAINNET) == main], network)
    # P2SH: HASH160 <20> EQUAL; P2PKH: DUP HASH160 <20> EQUALVERIFY CHECKSIG.
    return b"\xa9\x14" + payload[1:] + b"\x87" if to_script else b"\x76\xa9\x14" + payload[1:] + b"\x88\xac"


def address_of(script_pubkey: bytes, network: Network) -> str:
    """The address of a native segwit script. Raises ValueError for any other script."""
    if not is_segwit(script_pubkey):
        raise ValueError("not a native segwit script")
    version = script_pubkey[0] - 0x50 if script_pubkey[0] else 0
    data = [version, *_regroup(script_pubkey[2:], 8, 5, pad=True)]
    hrp = HRP[network]
    check = _polymod([*_expand(hrp), *data, 0, 0, 0, 0, 0, 0]) ^ (_BECH32M if version else _BECH32)
    return hrp + "1" + "".join(_CHARSET[d] for d in [*data, *(check >> 5 * (5 - i) & 31 for i in range(6))])


def is_segwit(script_pubkey: bytes) -> bool:
    """Whether a script is a witness program (BIP141); version 0 programs must have 20 or 32 bytes."""
    if not 4 <= len(script_pubkey) <= 42 or len(script_pubkey) != script_pubkey[1] + 2:
        return False
    return len(script_pubkey) in (22, 34) if script_pubkey[0] == 0 else 0x51 <= script_pubkey[0] <= 0x60


def _wrong_network(belongs_to: list[Network], network: Network) -> WrongNetworkAddress:
    names = " or ".join(n.name.lower() for n in belongs_to)
    return WrongNetworkAddress(f"that address is for {names}, this node is on {network.name.lower()}")


def _decode_segwit(text: str) -> tuple[int, bytes]:
    lowered = text.lower()
    if text not in (lowered, text.upper()):
        raise BadAddress("an address is written in one case, not mixed")
    hrp, _, tail = lowered.rpartition("1")
    if len(tail) < 7 or any(c not in _VALUE for c in tail):
        raise BadAddress
    data = [_VALUE[c] for c in tail]
    version = data[0]
    if _polymod([*_expand(hrp), *data]) != (_BECH32M if version else _BECH32):
        raise BadAddress("the address's checksum does not fit: check for a mistyped character")
    try:
        program = bytes(_regroup(data[1:-6], 5, 8, pad=False))
    except ValueError as e:
        raise BadAddress from e
    if version > 16 or not 2 <= len(program) <= 40 or (version == 0 and len(program) not in (20, 32)):
        raise BadAddress
    return version, program


def _expand(hrp: str) -> list[int]:
    return [ord(c) >> 5 for c in hrp] + [0] + [ord(c) & 31 for c in hrp]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i in range(5):
            check ^= _GENERATOR[i] if top >> i & 1 else 0
    return check


def _regroup(data: bytes | list[int], width_in: int, width_out: int, *, pad: bool) -> list[int]:
    """Bits in groups of another width (BIP173). Raises ValueError for padding that is too long or not zero."""
    acc = bits = 0
    out: list[int] = []
    for value in data:
        acc = (acc << width_in | value) & 0xFFFF
        bits += width_in
        while bits >= width_out:
            bits -= width_out
            out.append(acc >> bits & ((1 << width_out) - 1))
    if pad:
        if bits:
            out.append(acc << (width_out - bits) & ((1 << width_out) - 1))
    elif bits >= width_in or acc & ((1 << bits) - 1):
        raise ValueError("bad padding")
    return out
