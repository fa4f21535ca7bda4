"""What is done with the keystore and no running node: backups, restoring them, and checking what was written down."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from escrow.wallet.account import SigningAccount
from p2pnode import backup, keystore
from p2pnode.api.schema import DescriptorsView
from p2pnode.config import load, write_out
from p2pnode.console.launch import unlock
from p2pnode.console.setup import NewNode, extra_passphrase, new_passphrase, read_words
from p2pnode.datadir import DataDir, DiskError, write_private
from p2pnode.keystore import Keys
from protocol.errors import UserError
from protocol.identity import node_text, persona_text

TRIES = 3
"""How often one word may be typed."""


class WordsWrong(UserError):
    """Those are not the words of this node's mnemonic: write the mnemonic down again while you can."""

    code = 3163


class MadeBackup(Struct, frozen=True):
    """Where a backup is, and what is in it."""

    file: str
    bytes: int
    contracts: int


def make_backup(flags: Mapping[str, object], file: Path | None, target: str) -> MadeBackup:
    """`p2pnode backup`. Raises what unlocking raises, DataCorrupt, DiskError."""
    keys, folder = _unlocked(flags, file)
    folder.require_node()
    if not folder.database.exists():
        raise UserError(f"the node in {folder.path} has not run yet: there is nothing to back up but the mnemonic")
    data = backup.make(folder, keys, int(time.time()))
    contracts = sum(name.startswith(f"{backup.CONTRACTS}/") for name in backup.open_backup(data, keys).files)
    path = Path(target).expanduser().absolute()
    if not path.parent.is_dir():
        raise DiskError(f"{path} can't be written: there is no folder {path.parent}")
    write_private(path, data)
    return MadeBackup(str(path), len(data), contracts)


def tell_backup(made: MadeBackup, *, as_json: bool) -> None:
    """Say where it is."""
    if as_json:
        print(msgspec.json.encode(made).decode())  # noqa: T201
    else:
        print(f"Backup written to {made.file} ({made.bytes:,} bytes). Only the mnemonic opens it.")  # noqa: T201


def restore(
    flags: Mapping[str, object],
    file: Path | None,
    source: str,
    *,
    words: str,
    no_passphrase: bool,
    with_extra: bool,
) -> NewNode:
    """`p2pnode restore`: as `init`, with everything that the backup holds.

    The network is the backup's unless named. The keystore is written last, as by `init`. Raises BadBackup,
    ForeignBackup, BadMnemonic and what `init` raises.
    """
    try:
        with Path(source).expanduser().open("rb") as stream:
            data = stream.read(backup.MAX_FILE + 1)
    except OSError as e:
        raise backup.BadBackup(f"the backup {source} can't be read: {e.strerror or e}") from e
    header, _ = backup.read_header(data)
    asked = {"network": header.network, **flags}
    config = load(flags=asked, file=file, environ=os.environ)
    folder = DataDir(config.data_dir)
    if folder.keystore.exists() or folder.database.exists():
        raise keystore.KeystoreExists(
            f"there is a node in {folder.path} already, and it is never overwritten: choose another --datadir"
        )
    mnemonic = read_words(words)
    extra = extra_passphrase() if with_extra else ""
    keys = Keys(config.network, mnemonic, extra)
    opened = backup.open_backup(data, keys)
    files = dict(opened.files)
    files[backup.CONFIG] = _merged(files.get(backup.CONFIG), {k: v for k, v in asked.items() if k != "data_dir"})
    passphrase = new_passphrase(config, no_passphrase=no_passphrase)
    folder.create()
    with folder.lock():
        try:
            backup.write_files(folder, files)
        except FileExistsError as e:
            raise keystore.KeystoreExists(
                f"there are files of a node in {folder.path} already: choose another --datadir"
            ) from e
        keystore.create(
            folder.keystore,
            mnemonic=mnemonic,
            passphrase=passphrase,
            network=config.network,
            cost=config.keystore.cost,
            bip39_passphrase=extra,
        )
    return NewNode(
        data_dir=str(folder.path),
        network=config.network.name.lower(),
        roles=load(flags={"data_dir": str(folder.path)}, environ={}).roles,
        node=node_text(keys.node().public),
        persona=persona_text(keys.persona().public),
        config=str(folder.config),
        passphrase=passphrase != "",
        mnemonic=None,
    )


def private_descriptors(flags: Mapping[str, object], file: Path | None) -> DescriptorsView:
    """Both descriptors with the private key. Raises what unlocking raises."""
    keys, _ = _unlocked(flags, file)
    external, internal = SigningAccount(keys.seed.master, keys.network).private_descriptors
    return DescriptorsView(external=external, internal=internal)


def check_words(flags: Mapping[str, object], file: Path | None, count: int) -> None:
    """Ask for some words of the mnemonic, in random places. Raises WordsWrong and what unlocking raises."""
    keys, _ = _unlocked(flags, file)
    words = keys.mnemonic.split()
    places = sorted(random.SystemRandom().sample(range(len(words)), min(count, len(words))))
    ask_words(words, places)
    print(f"{len(places)} of {len(words)} words are right: your copy is good.")  # noqa: T201


def ask_words(words: Sequence[str], places: Sequence[int]) -> None:
    """Ask for the words in these places. Raises WordsWrong."""
    for place in places:
        for _ in range(TRIES):
            print(f"Word {place + 1}: ", end="", file=sys.stderr, flush=True)  # noqa: T201  (a prompt)
            typed = sys.stdin.readline(200)
            if typed.strip().lower() == words[place]:
                break
            if not typed:
                raise WordsWrong("the check was broken off: no word was given")
            print("That is not the word.", file=sys.stderr)  # noqa: T201  (a prompt)
        else:
            raise WordsWrong


def _unlocked(flags: Mapping[str, object], file: Path | None) -> tuple[Keys, DataDir]:
    config = load(flags=flags, file=file, environ=os.environ)
    folder = DataDir(config.data_dir)
    folder.require_node()
    keystore.check_network(keystore.read(folder.keystore), config.network, folder.keystore)
    return unlock(config, folder), folder


def _merged(stored: bytes | None, settings: Mapping[str, object]) -> bytes:
    """The backup's configuration, with what was asked for now."""
    with tempfile.TemporaryDirectory() as folder:
        # `load` reads files; this one holds no more than the data directory will.
        path = Path(folder) / backup.CONFIG
        path.write_bytes(stored or b"")
        config = load(flags=settings, file=path, environ={})
        return write_out(config, flags=settings, file=path).encode()
