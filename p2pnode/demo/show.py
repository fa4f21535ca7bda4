"""The demo's tables, and what to try with nodes that were kept."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote

from rich import box
from rich.console import Console
from rich.table import Table

from p2pnode.demo.disputes import DisputeReport
from p2pnode.demo.onchain import Escrow
from p2pnode.demo.play import METHOD
from p2pnode.demo.report import Report

BISQ_1 = "747-778"
"""Virtual bytes of a trade on Bisq 1: what one sees on the chain here stands beside it."""


def show(console: Console, report: Report) -> None:
    """Print everything."""
    parts = (
        _trade(report),
        _script(report.script),
        _on_chain(report),
        _money(report),
        _messages(report),
        _times(report),
    )
    for table in parts:
        console.print()
        console.print(table)


def show_disputes(console: Console, report: DisputeReport) -> None:
    """Print how each dispute ended."""
    title = f"Disputes over {report.amount_sats:,} sat, with deposits of {report.deposit_sats:,} sat each"
    names = ("", "ended", "buyer gets", "seller gets", "arbiter", "miners", "signed by", "messages", "blocks", "ms")
    table = _table(title, *names, right=(2, 3, 4, 5, 7, 8, 9))
    for scene in report.scenes:
        gets = (scene.buyer_sats, scene.seller_sats, scene.arbiter_sats, scene.miners_sats)
        signed = " + ".join(scene.signed_by) + (" (backup)" if scene.branch == "backup" else "")
        counts = (str(scene.messages), str(scene.blocks), f"{scene.ms:,.0f}")
        table.add_row(scene.name, scene.outcome, *(f"{value:,}" for value in gets), signed, *counts)
    console.print()
    console.print(table)
    console.print(
        "Messages: those beyond evidence, from opening to payout. Blocks: mined meanwhile. ms: without mining.\n"
        "After each, wallets and chain agreed to the satoshi, and the arbiter had exactly the contract's fee."
    )


def show_next(console: Console, report: Report) -> None:
    """Print how to go on with the nodes that run on, and how to end them."""
    at = {node.name: f"--datadir {quote(node.datadir)}" for node in report.nodes}
    run, trade, rpc = _program(), report.trade_id[:8], report.rpc
    mine = '{"method":"generatetoaddress","params":[1,"' + report.escrow_address + '"]}'
    sale = f'0.01 --price "85000 EUR" --method {METHOD} --detail holder=Sally --detail iban=DE02120300000000202051'
    lines = {
        "look around": [
            f"{run} info {at['buyer']}",
            f"{run} wallet balance {at['buyer']}",
            f"{run} trade show {trade} {at['buyer']}",
            f"{run} trade show {trade} {at['seller']}",
            f"{run} trade list {at['arbiter']}",
            f"{run} arbiter list {at['backup-arbiter']}",
            f"{run} peer list {at['bootstrap-1']}",
            f"{run} info {at['bootstrap-2']}",
        ],
        "trade again (OFFER and TRADE are ids that the lists show)": [
            f"{run} offer create sell {sale} {at['seller']}",
            f"{run} offer list {at['buyer']}",
            f"{run} offer take OFFER --yes --detail holder=Bob --detail iban=FR7630006000011234567890189 {at['buyer']}",
            f"{run} trade list {at['buyer']}",
            "mine a block, as below",
            f"{run} trade pay TRADE {at['buyer']}",
            f"{run} trade release TRADE --yes {at['seller']}",
            "mine another block",
        ],
        "mine a block": [f"curl -s -u \"$(cat {quote(rpc.cookie_file)})\" -d '{mine}' {rpc.url}"],
        "stop everything, and remove it": [
            f"kill {' '.join(str(node.pid) for node in report.nodes)} {rpc.pid}",
            f"rm -r {quote(report.folder)}",
        ],
    }
    console.print("\n[bold]Everything runs on.[/] What to try next:")
    for title, commands in lines.items():
        console.print(f"\n  [bold]{title}[/]")
        for command in commands:
            # Nothing is wrapped or coloured, so that a line can be copied.
            console.print(f"    {command}", soft_wrap=True, markup=False, highlight=False)


def _program() -> str:
    """How this program was called."""
    return quote(sys.argv[0]) if Path(sys.argv[0]).name == "p2pnode" else "p2pnode"


def _table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


def _trade(report: Report) -> Table:
    table = _table("The trade", "", "")
    kind = {1: "1: 2-of-3", 2: "2: 2-of-3 with a backup arbiter"}[report.escrow_type]
    deposits = f"buyer {report.buyer_deposit_sats:,} sat, seller {report.seller_deposit_sats:,} sat"
    for name, value in (
        ("amount", f"{report.amount_sats:,} sat for {report.volume} {report.currency}"),
        ("deposits", "none: the seller funds alone" if report.single_funded else deposits),
        ("escrow type", kind),
        ("contract", report.contract_id or ""),
        ("escrow", f"{report.escrow_txid}:{report.escrow_vout}"),
        ("", f"{report.escrow_value_sats:,} sat at {report.escrow_address}"),
        ("payout", report.payout_txid),
    ):
        table.add_row(name, value)
    return table


def _script(escrow: Escrow) -> Table:
    table = _table("The witness script, decoded", "", "")
    names = {key: holder for holder, key in escrow.keys}
    depth = 0
    for op in escrow.asm:
        depth -= op in ("OP_ELSE", "OP_ENDIF")
        label = names.get(op, "blocks" if op == str(escrow.delay_blocks) else "")
        table.add_row("  " * depth + op, f"[cyan]{label}[/]")
        depth += op in ("OP_IF", "OP_ELSE")
    table.add_row("[dim]spent by[/]", f"{' and '.join(escrow.signed_by)}, {escrow.branch} branch")
    return table


def _money(report: Report) -> Table:
    table = _table("Balances, in satoshis", "", "before", "after", "change", "of it fees", right=(1, 2, 3, 4))
    fees = {"buyer": report.fees.buyer_sats, "seller": report.fees.seller_sats}
    for name, purse in report.balances.items():
        before, after, change = f"{purse.before_sats:,}", f"{purse.after_sats:,}", f"{purse.change_sats:+,}"
        table.add_row(name, before, after, change, f"{fees[name]:,}")
    table.add_row("miners", "", "", f"{report.fees.total_sats:+,}", "")
    left = sum(purse.change_sats for purse in report.balances.values()) + report.fees.total_sats
    table.add_row("sum", "", "", f"{left:,}", "[green]conserved to the satoshi[/]")
    return table


def _on_chain(report: Report) -> Table:
    table = _table("On the chain", "transaction", "vB", "fee in sat", "inputs", "outputs in sat", right=(1, 2, 3))
    for name, tx in report.transactions.items():
        outputs = " + ".join(f"{value:,}" for value in tx.outputs)
        table.add_row(name, str(tx.vsize), f"{tx.fee_sats:,}", str(len(tx.spent)), outputs)
    sizes = report.sizes
    whole = f"[green]within the limit of {sizes.limit_vb} vB[/]"
    table.add_row("whole trade", str(sizes.total_vb), f"{report.fees.total_sats:,}", "", whole)
    table.add_row("[dim]Bisq 1, as published[/]", f"[dim]{BISQ_1}[/]", "", "", "[dim]four transactions[/]")
    return table


def _messages(report: Report) -> Table:
    table = _table(f"Application messages: {len(report.messages)}", "", "message", "from", "to", right=(0,))
    for line in report.messages:
        table.add_row(str(line.number), line.name, line.sender, line.receiver)
    for name, seen in report.arbiters.items():
        table.add_row(str(seen.messages), "[dim]trade messages[/]", "[dim]anybody[/]", f"[dim]{name}[/]")
    return table


def _times(report: Report) -> Table:
    table = _table("Time", "step", "ms", "of it mining", right=(1, 2))
    for step in report.steps:
        table.add_row(step.name, f"{step.ms:,.0f}", f"{step.mining_ms:,.0f}" if step.mining_ms else "")
    table.add_section()
    seconds = report.seconds
    table.add_row("from the take to the funding in the mempool", f"{report.take_to_mempool_ms:,.0f}", "")
    table.add_row("the trade", f"{seconds.trade * 1000:,.0f}", "")
    table.add_row("all", f"{seconds.total * 1000:,.0f}", f"{seconds.mining * 1000:,.0f}")
    table.add_row("[bold]ours[/]", f"[bold]{seconds.ours:.1f} s[/]", "")
    return table
