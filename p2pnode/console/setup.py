"""`p2pnode init`: a data directory, a configuration and an encrypted mnemonic, new or restored.

The keystore is written last: until then there is no node in the folder, and an interrupted `init` can be repeated. The
mnemonic of a new node is shown once, after it is safe on disk; nothing shows it again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from p2pnode import keystore
from p2pnode.birthday import birthday_text
from p2pnode.config import Config, load, write_out
from p2pnode.datadir import DataDir, write_private
from p2pnode.keystore import Keys
from protocol.errors import UserError
from protocol.identity import node_text, persona_text

_MAX_WORDS_FILE = 4_096


class NoWords(UserError):
    """There is no mnemonic to restore: give it in a file or on standard input."""

    code = 3162


class NewNode(Struct, frozen=True):
    """What `init` made. `mnemonic` is None for a restored node: its owner has it."""

    data_dir: str
    network: str
    roles: tuple[str, ...]
    node: str
    persona: str
    config: str
    passphrase: bool
    mnemonic: str | None


def init(
    flags: Mapping[str, object],
    file: Path | None,
    *,
    restore: str | None,
    no_passphrase: bool,
    with_extra: bool,
    birthday: str | None = None,
) -> NewNode:
    """Make a node.

    `restore`: None for a new mnemonic, else the file with the words, `-` for standard input. `with_extra`: the
    mnemonic has a passphrase of its own (BIP39). `birthday`: the age of a restored one, as `p2pnode.birthday` reads it;
    a new one is as old as now. Raises what config, datadir and keystore raise.
    """
    if birthday is not None and restore is None:
        raise UserError("--birthday tells the age of a mnemonic that is restored: give --restore as well")
    asked = {key: value for key, value in flags.items() if key != "data_dir"}
    if birthday is None and restore is None and "wallet.birthday" not in flags:
        birthday = birthday_text(int(time.time()))
    if birthday is not None:
        flags = {**flags, "wallet.birthday": birthday}
    config = load(flags=flags, file=file, environ=os.environ)
    folder = DataDir(config.data_dir)
    if folder.keystore.exists():
        raise keystore.KeystoreExists(
            f"there is a node in {folder.path} already, and it is never overwritten: choose another --datadir"
        )
    words = keystore.new_mnemonic() if restore is None else read_words(restore)
    extra = extra_passphrase() if with_extra else ""
    keys = Keys(config.network, words, extra)
    passphrase = new_passphrase(config, no_passphrase=no_passphrase)
    folder.create()
    with folder.lock():
        settings = {key: value for key, value in flags.items() if key != "data_dir"}
        if not folder.config.exists():
            write_private(folder.config, write_out(config, flags=settings, file=file).encode())
        elif asked or file is not None:
            raise UserError(f"{folder.config} is there already: change it instead of giving settings to init")
        keystore.create(
            folder.keystore,
            mnemonic=words,
            passphrase=passphrase,
            network=config.network,
            cost=config.keystore.cost,
            bip39_passphrase=extra,
        )
    return NewNode(
        data_dir=str(folder.path),
        network=config.network.name.lower(),
        roles=config.roles,
        node=node_text(keys.node().public),
        persona=persona_text(keys.persona().public),
        config=str(folder.config),
        passphrase=passphrase != "",
        mnemonic=words if restore is None else None,
    )


def show(made: NewNode, *, as_json: bool) -> None:
    """Print what was made, and a new mnemonic for the one and only time."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(made), indent=2).decode())  # noqa: T201
        return
    lines: list[str] = []
    if made.mnemonic is not None:
        lines += [
            "Write these words down, in this order, and keep them where nobody else finds them.",
            "They restore your keys and coins. They are shown now and never again.",
            "",
        ]
        words = made.mnemonic.split()
        rows = -(-len(words) // 4)
        for row in range(rows):
            cells = (f"{i + 1:>2} {words[i]:<10}" for i in range(row, len(words), rows))
            lines.append("   ".join(cells).rstrip())
        lines.append("")
    lines += [
        f"A {made.network} node is set up in {made.data_dir}",
        f"  roles    {', '.join(made.roles)}",
        f"  persona  {made.persona}",
    ]
    if not made.passphrase:
        lines.append("  The mnemonic is not encrypted: whoever reads the folder has the keys.")
    lines.append(f"Start it with: p2pnode run --datadir {made.data_dir}")
    print("\n".join(lines))  # noqa: T201


def new_passphrase(config: Config, *, no_passphrase: bool) -> str:
    """The passphrase of a keystore to be made. Raises PassphraseUnfit, NoPassphrase."""
    if no_passphrase:
        return ""
    passphrase = keystore.ask_passphrase(
        os.environ,
        config.keystore.passphrase_file,
        prompt="New passphrase for the keystore: ",
        confirm=True,
    )
    keystore.check_new_passphrase(passphrase, allow_empty=False)
    return passphrase


def read_words(source: str) -> str:
    """A mnemonic from a file, or for `-` from standard input. Raises NoWords."""
    if source == "-":
        if sys.stdin.isatty():
            print("Type the words of the mnemonic on one line:", file=sys.stderr)  # noqa: T201  (a prompt)
            words = sys.stdin.readline(_MAX_WORDS_FILE)
        else:
            words = sys.stdin.read(_MAX_WORDS_FILE)
    else:
        try:
            with Path(source).open("rb") as file:
                words = file.read(_MAX_WORDS_FILE).decode("utf-8", "replace")
        except OSError as e:
            raise NoWords(f"the mnemonic can't be read from {source}: {e.strerror or e}") from e
    if not words.strip():
        raise NoWords
    return words


def extra_passphrase(*, confirm: bool = True) -> str:
    """A mnemonic's own passphrase (BIP39), from the environment or a prompt; asked twice to confirm."""
    named = os.environ.get("P2PNODE_MNEMONIC_PASSPHRASE")
    if named is not None:
        return named
    return keystore.ask_passphrase({}, prompt="The mnemonic's own passphrase (BIP39): ", confirm=confirm)
