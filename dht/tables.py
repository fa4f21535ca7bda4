"""Two routing tables as one: what is had by IPv4 and what is had by IPv6.

A node that both lead to is in both, so that losing one way does not lose the node, and each may be told to those who
can use it. The address limits hold in each by itself: a /24 here, a /48 there. Seen as one, a node counts once, by
its IPv4 contact where there is one. In a network of one version the other table is empty and costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import Final

from kademlia.node import Node

from dht.contact import Contact, Via
from dht.routing import Bucket, Table

V4: Final = 4


class Tables:
    """The nodes that this node knows, by distance; made of two `Table`s."""

    def __init__(self, own: Node, *, bucket_size: int, digit_bits: int, exempt: Callable[[Contact], bool]) -> None:
        """As `Table`."""
        self.v4 = Table(own, bucket_size=bucket_size, digit_bits=digit_bits, exempt=exempt)
        self.v6 = Table(own, bucket_size=bucket_size, digit_bits=digit_bits, exempt=exempt)
        self.ksize: int = self.v4.ksize
        self.odd = 0
        """Contacts that only channels lead to."""

    def of(self, contact: Contact) -> Table:
        """The table that a contact belongs into."""
        return self.v4 if contact.version == V4 else self.v6

    @property
    def size(self) -> int:
        """How many ways to nodes are known."""
        return self.v4.size + self.v6.size

    @property
    def uniform(self) -> bool:
        """Whether every contact is an IPv4 address that datagrams reach: then nobody need be left out for anybody."""
        return not self.v6.size and not self.odd

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets of both."""
        return [*self.v4.buckets, *self.v6.buckets] if self.v6.size else self.v4.buckets

    def bucket_of(self, contact: Contact) -> Bucket:
        """The bucket that a contact belongs into."""
        table = self.of(contact)
        return table.buckets[table.get_bucket_for(contact)]

    def __len__(self) -> int:
        if not self.v6.size:
            return self.v4.size
        return len({c.id for c in self})

    def __iter__(self) -> Iterator[Contact]:
        yield from self.v4
        yield from self.v6

    def get(self, contact: Contact) -> Contact | None:
        """What is known of this node by this version of IP."""
        return self.of(contact).get(contact)

    def holds(self, contact: Contact) -> bool:
        """Whether the node is in the table by this version of IP, not merely named."""
        return self.of(contact).holds(contact)

    def wants(self, contact: Contact) -> bool:
        """As `Table.wants`."""
        return self.of(contact).wants(contact)

    def add_contact(self, contact: Contact, now: float = 0.0) -> bool:
        """As `Table.add_contact`."""
        table = self.of(contact)
        known = table.get(contact)
        added = table.add_contact(contact, now)
        if contact.via is Via.CHANNEL or (known is not None and known.via is Via.CHANNEL):
            self._recount()
        return added

    def remove_contact(self, contact: Contact) -> None:
        """As `Table.remove_contact`."""
        self.of(contact).remove_contact(contact)
        if self.odd:
            self._recount()

    def _recount(self) -> None:
        self.odd = sum(c.via is Via.CHANNEL for c in self)

    def name(self, contacts: Iterable[Contact]) -> None:
        """As `Table.name`."""
        ours: list[Contact] = []
        others: list[Contact] = []
        for contact in contacts:
            (ours if contact.version == V4 else others).append(contact)
        self.v4.name(ours)
        if others:
            self.v6.name(others)

    def forget_named(self, contact: Contact) -> None:
        """As `Table.forget_named`."""
        self.of(contact).forget_named(contact)

    def closest(
        self, target: int, count: int, skip: Callable[[Contact], bool] | None = None, *, named: bool = False
    ) -> list[Contact]:
        """As `Table.closest`, each node once."""
        near = self.v4.closest(target, count, skip, named=named)
        if not self.v6.size and not (named and any(b.named for b in self.v6.buckets)):
            return near
        far = self.v6.closest(target, count, skip, named=named)
        if not near:
            return far
        out: list[Contact] = []
        # Of two contacts of one node the earlier stream's comes first.
        for contact in merge(near, far, key=lambda c: c.long_id ^ target):
            if not out or out[-1].id != contact.id:
                out.append(contact)
        return out[:count]
