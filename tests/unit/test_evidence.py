"""Evidence on the terminal and on the disk: hostile files and words change nothing but what is read."""

from __future__ import annotations

import json
import os
import random
import stat
import unicodedata
from base64 import b64encode
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console

from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.api.schema.base import DeadlineView
from p2pnode.console import evidence
from p2pnode.console.cells import clean, due, due_short
from p2pnode.console.inputs import BadInput
from p2pnode.console.tables import render
from p2pnode.looking import facts_of, text_kind
from tests.pictures import EVERY, PDF, chunk, jpeg, png, webp

EVIL = "a\x1b[2J\x9b31m\x07\u202egnp\u2066x\u200b\r\nb[bold]c[/bold]" + "e" + "\u0301" * 40


def item(number: int = 1, name: str = "receipt.png", media: str = "image/png", **changes: object) -> e.EvidenceItem:
    plain = e.EvidenceItem(
        number=number, by="buyer", to="you", at=1_700_000_000, height=812_345, note="", name=name, media=media,
        size_bytes=10, content="ab" * 32, here=True, matches=True, facts=(),
    )  # fmt: skip
    return replace(plain, **changes)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shown(data: bytes, **changes: object) -> str:
    facts = tuple(e.Fact(name=name, value=value) for name, value in facts_of(data))
    file = e.EvidenceFile(item=item(facts=facts, **changes), data=b64encode(data).decode())  # type: ignore[arg-type]
    return printed(file)


def printed(view: Struct) -> str:
    console = Console(width=140, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(render(view))
    return capture.get()


def harmless(text: str) -> bool:
    """No control, no change of direction, nothing invisible, no piles of marks."""
    return all(c == "\n" or unicodedata.category(c)[0] != "C" for c in text) and "\u0301" * 4 not in text


class TestFacts:
    @pytest.mark.parametrize(
        ("data", "dimensions"),
        [(png(7, 9), "7 x 9"), (jpeg(), "3 x 2"), (webp(), "5 x 4"), (png(1_000_000, 1_000_000), "1000000 x 1000000")],
    )
    def test_dimensions_are_read_without_decoding(self, data: bytes, dimensions: str) -> None:
        """A picture of a million by a million points would fill the memory of whoever opens it."""
        assert dict(facts_of(data))["dimensions"].startswith(dimensions)

    def test_notes_software_and_camera_are_told(self) -> None:
        exif = (
            b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
             b"\x01\x31\0\x02\0\0\0\x0a\0\0\0\x26" + b"\x88\x25\0\x04\0\0\0\x01\0\0\0\0" + bytes(4) + b"Photoshop\0"
        )  # fmt: skip
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        found = facts_of(jpeg(segments=segment))
        assert ("software", "Photoshop") in found
        assert ("note", "says where it was taken") in found
        noted = facts_of(png(extra=chunk(b"tEXt", b"Software\0GIMP") + chunk(b"tIME", b"\x07\xe8\x05\x04\x03\x02\x01")))
        assert ("note", "Software: GIMP") in noted
        assert ("changed", "2024-05-04 03:02:01 UTC, it says") in noted

    def test_active_parts_of_a_document_are_pointed_out(self) -> None:
        data = PDF.replace(b"/Type /Page", b"/Type /Page /OpenAction <</S /JavaScript /JS (x)>>")
        assert ("pages", "1") in facts_of(data)
        (beware,) = [value for name, value in facts_of(data) if name == "beware"]
        assert "JavaScript" in beware
        assert "acts when opened" in beware

    @pytest.mark.parametrize("media", EVERY)
    def test_no_damage_makes_it_fail(self, media: str) -> None:
        rng = random.Random(media)
        for _ in range(300):
            data = bytearray(EVERY[media])
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            facts_of(bytes(data))
            facts_of(bytes(data[: rng.randrange(len(data))]))

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ('{"a": 1}', "json"),
            ("a;b\n1;2\n", "csv"),
            ("a,b\n1,2\n", "csv"),
            ("hello, you\nthere\n", "text"),
            ("", "text"),
        ],
    )
    def test_kind_of_a_text(self, text: str, kind: str) -> None:
        assert text_kind(text) == kind


class TestShown:
    def test_text_comes_without_what_a_terminal_would_obey(self) -> None:
        for text in (EVIL, f"name;note\n{EVIL.replace(chr(10), '')};x\n", json.dumps({"a": EVIL}, ensure_ascii=False)):
            out = shown(text.encode(), media="text/plain", note=EVIL, name="x.txt")
            assert harmless(out), out
            assert "[bold]" in out, "a stranger's markup is text"

    def test_long_text_is_cut_and_says_so(self) -> None:
        out = shown(b"line\n" * 10_000, media="text/plain")
        assert "lines more" in out
        assert len(out) < 60_000

    def test_deep_or_broken_json_is_shown_as_text(self) -> None:
        for text in ("[" * 100_000 + "]" * 100_000, '{"a": }'):
            assert shown(text.encode(), media="text/plain")

    def test_tables_and_json_are_laid_out(self) -> None:
        table = shown(b"date,amount\n2026-11-20,650.00\n2026-11-21,1.00\n", media="text/plain")
        assert "650.00" in table
        assert "," not in table.splitlines()[-1]
        assert '  "iban": "DE02"' in shown(b'{"iban":"DE02"}', media="text/plain")

    def test_file_that_differs_from_the_signed_log_is_marked(self) -> None:
        assert "DIFFERS" in shown(png(), matches=False)
        assert "matches" in shown(png())

    def test_every_view_of_the_desk_is_harmless_whatever_people_write(self) -> None:
        claim = d.ClaimView(text=EVIL, buyer_share_ppm=1_000_000)
        party = d.PartyView(persona=EVIL, claim=claim, evidence=1, late=1, details={EVIL: EVIL})
        line = d.LineView(
            at=1_700_000_000, height=800_000, by="buyer", to="you", kind="evidence", text=EVIL,
            attachments=(d.AttachmentView(content="ab", name=EVIL, media="text/plain", size_bytes=1, here=True),),
        )  # fmt: skip
        due_at = DeadlineView(name="ruling", height=800_010, blocks=10, estimated_at=1_700_006_000)
        case = d.CaseView(
            id="ab" * 32, contract_id="cd" * 32, phase="hearing", open=True, role="main", opened_by="buyer",
            amount_sats=1, currency="EUR", volume="1", price="1", method=EVIL, buyer_deposit_sats=1,
            seller_deposit_sats=1, fee_sats=1, escrow_value_sats=1, funding_txid="ef" * 32, escrow_depth=1,
            spent_by=None, spent_depth=None, buyer=party, seller=party, heard=False, extended=False, overdue=True,
            deadlines=(due_at,),
            ruling=None, findings=(d.FindingView(who="buyer", what=EVIL),), actions=("rule",), ending=EVIL,
            created=1_700_000_000, updated=1_700_000_000, timeline=(line,),
        )  # fmt: skip
        listed = e.EvidenceList(items=(item(name=EVIL, note=EVIL),))
        row = d.PreviewRow(label=EVIL, buyer_share_ppm=1, quote=None, trouble=EVIL)
        preview = d.Preview(case="ab", escrow_value_sats=1, rows=(row,))
        for view in (case, d.CaseList(cases=(case,)), listed, preview):
            assert harmless(printed(view))
            assert "[bold]" in printed(view) or isinstance(view, d.CaseList)

    def test_deadlines_name_the_block_and_an_estimate(self) -> None:
        view = DeadlineView(name="payment", height=812_345, blocks=12, estimated_at=1_700_000_000)
        assert "block 812,345, in 12 blocks, estimated 20" in due(view)
        assert "block 812,345 (~20" in due_short(view)
        assert "3 blocks ago" in due(replace(view, blocks=-3))
        assert "clock" in due(replace(view, height=None, blocks=None))

    def test_clean_keeps_what_languages_need(self) -> None:
        for text in ("Überweisung €", "платёж", "支払い", "e\u0301te\u0301", "שלום"):
            assert clean(text) == text


class TestSaving:
    def files(self, *names: str) -> list[e.EvidenceFile]:
        data = b64encode(b"hello").decode()
        return [e.EvidenceFile(item=item(n, name, "text/plain"), data=data) for n, name in enumerate(names, 1)]

    def test_names_are_ours_and_never_leave_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "case"
        hostile = (
            "../../evil",
            "/etc/passwd",
            "..",
            "a/b\\c",
            "\u202egnp.exe",
            "run.sh",
            ".bashrc",
            "x" * 500,
            "a.TXT",
        )
        names = evidence.save(self.files(*hostile), folder)
        assert listed(folder) == sorted([*names, "index.json"])
        assert all(name.endswith(".txt") for name in names), "no file is given the ending of a program"
        assert listed(tmp_path) == ["case"]
        for name in listed(folder):
            mode = stat.S_IMODE((folder / name).stat().st_mode)
            assert mode == 0o600
        index = json.loads((folder / "index.json").read_text())
        assert [entry["file"] for entry in index] == names

    def test_folder_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (tmp_path / "case").symlink_to(elsewhere)
        with pytest.raises(BadInput, match="link"):
            evidence.save(self.files("a.txt"), tmp_path / "case")
        assert listed(elsewhere) == []

    def test_nothing_is_written_over_or_through_a_link(self, tmp_path: Path) -> None:
        target = tmp_path / "precious"
        target.write_text("mine")
        folder = tmp_path / "case"
        folder.mkdir()
        (folder / "01-buyer-a.txt").symlink_to(target)
        with pytest.raises(BadInput):
            evidence.save(self.files("a.txt"), folder)
        assert target.read_text() == "mine"

    def test_only_plain_files_of_a_fair_size_are_read(self, tmp_path: Path) -> None:
        """A pipe would wait for ever, and a device never ends."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for name in (str(pipe), "/dev/zero", str(tmp_path), str(tmp_path / "none")):
            with pytest.raises(BadInput):
                evidence.read(name, 100)
        (tmp_path / "large").write_bytes(bytes(101))
        with pytest.raises(BadInput, match="more than"):
            evidence.read(str(tmp_path / "large"), 100)
