"""The routing table: kademlia's buckets, with what that package leaves open closed (ADR 0005).

Kept from `kademlia`: `RoutingTable`, `KBucket` (least recently seen first, replacement cache, splitting), `Node`.
Changed:

* `find_neighbors` took the first k nodes it walked over, which are not the k closest; here the buckets are walked in
  order of distance, which in a binary trie is exact.
* A bucket's depth was counted over the bit strings of its nodes (190 µs, and it is not the depth of its range).
* Time is an argument. No coroutine is started in here.
* A node at a new address replaces its old entry instead of keeping the stale port.
* At most a few nodes of one address group per bucket and in the table: an eclipse needs real addresses.
* Nodes that were named but never heard are kept apart, a few per bucket, as starting points of our own searches only.
* Only nodes that proved to receive at their address enter (the caller sees to it), and suspects are not handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Final

from kademlia.routing import KBucket, RoutingTable

from dht.contact import ID_BITS, Contact, Scope

GROUP_PER_BUCKET: Final = 2
GROUP_PER_TABLE: Final = 10


_first = itemgetter(0)


class Bucket(KBucket):  # type: ignore[misc]  # kademlia ships no types
    """A kademlia bucket that knows its depth by its range and takes its time from outside."""

    nodes: dict[bytes, Contact]
    replacement_nodes: dict[bytes, Contact]
    range: tuple[int, int]

    def __init__(self, lower: int, upper: int, size: int, now: float = 0.0) -> None:
        self.last_updated = now
        self.low = lower
        self.bits = (upper - lower).bit_length()
        """The range is the ids from `low` whose last `bits` bits are free."""
        self.named: dict[bytes, Contact] = {}
        """Heard of, not heard: never handed to others, never counted."""
        super().__init__(lower, upper, size, replacementNodeFactor=1)

    def touch_last_updated(self) -> None:
        """Do nothing: `RoutingTable.touch` records the time, which is an argument there."""

    def split(self) -> tuple[Bucket, Bucket]:
        """The two halves, with the nodes of both lists dealt out."""
        lower, upper = self.range
        middle = (lower + upper) // 2
        halves = (
            Bucket(lower, middle, self.ksize, self.last_updated),
            Bucket(middle + 1, upper, self.ksize, self.last_updated),
        )
        for contact in (*self.nodes.values(), *self.replacement_nodes.values()):
            halves[contact.long_id > middle].add_node(contact)
        for contact in self.named.values():
            halves[contact.long_id > middle].named[contact.id] = contact
        return halves

    def depth(self) -> int:
        """How many leading bits the ids of this range share."""
        return ID_BITS - self.bits


class Table(RoutingTable):  # type: ignore[misc]
    """The nodes that this node knows, by distance."""

    buckets: list[Bucket]

    def __init__(self, own: Contact, *, bucket_size: int, digit_bits: int, exempt: Callable[[Contact], bool]) -> None:
        """`digit_bits`: buckets away from our own id split down to multiples of this depth (the paper's b).

        `exempt`: contacts that address limits do not count (loopback, where the configuration says so).
        """
        self.digit_bits = digit_bits
        self._exempt = exempt
        self._groups: dict[bytes, int] = {}
        self.size = 0
        super().__init__(None, bucket_size, own)

    def flush(self) -> None:
        """Forget every node."""
        self.buckets = [Bucket(0, 2**ID_BITS - 1, self.ksize)]
        self._groups = {}
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self.buckets:
            yield from bucket.nodes.values()

    def get_bucket_for(self, node: Contact) -> int:
        """The index of the bucket whose range holds the id."""
        low, high = 0, len(self.buckets) - 1
        target = node.long_id
        while low < high:
            middle = (low + high) // 2
            if target > self.buckets[middle].range[1]:
                low = middle + 1
            else:
                high = middle
        return low

    def get(self, node: Contact) -> Contact | None:
        """What is known of the node with this id."""
        return self.buckets[self.get_bucket_for(node)].nodes.get(node.id)

    def holds(self, node: Contact) -> bool:
        """Whether the node is in the table, not merely named."""
        return node.id in self.buckets[self.get_bucket_for(node)].nodes

    def wants(self, node: Contact) -> bool:
        """Whether the node would enter if it proved to be there: unknown, with room for it and its address group."""
        bucket = self.buckets[self.get_bucket_for(node)]
        if node.id in bucket.nodes or node.id == self.node.id:
            return False
        if len(bucket.nodes) >= self.ksize and not self._may_split(bucket):
            return False
        return self._diverse(bucket, node)

    def add_contact(self, node: Contact, now: float = 0.0) -> bool:
        """Enter or refresh a node that was heard at this address. Returns whether it is in the table now."""
        if node.id == self.node.id:
            return False
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            bucket.last_updated = now
            known = bucket.nodes.get(node.id)
            if known is not None:
                if known is not node:
                    self._forget(known)
                    self._count(node)
                bucket.add_node(node)
                return True
            if not self._diverse(bucket, node):
                return False
            if len(bucket.nodes) < self.ksize:
                bucket.named.pop(node.id, None)
                bucket.add_node(node)
                self._count(node)
                return True
            if not self._may_split(bucket):
                bucket.add_node(node)  # to the replacement cache
                return False
            self._split(index)

    def name(self, contacts: Iterable[Contact]) -> None:
        """Keep contacts that others named, as far as there is room and they are not known."""
        for contact in contacts:
            bucket = self.buckets[self.get_bucket_for(contact)]
            node_id = contact.id
            if node_id not in bucket.nodes and node_id not in bucket.named and node_id != self.node.id:
                if len(bucket.named) >= self.ksize:
                    del bucket.named[next(iter(bucket.named))]
                bucket.named[node_id] = contact

    def forget_named(self, node: Contact) -> None:
        """A node that was named does not answer."""
        self.buckets[self.get_bucket_for(node)].named.pop(node.id, None)

    def _split(self, index: int) -> None:
        before = len(self.buckets[index].nodes)
        replacements = len(self.buckets[index].replacement_nodes)
        self.split_bucket(index)
        if replacements:
            # Replacements may have been promoted: recount, it happens a few times in a table's life.
            after = sum(len(self.buckets[i].nodes) for i in (index, index + 1))
            if after != before:
                self._groups = {}
                self.size = 0
                for contact in self:
                    self._count(contact)

    def _may_split(self, bucket: Bucket) -> bool:
        depth = bucket.depth()
        return depth < ID_BITS - 1 and (bucket.has_in_range(self.node) or depth % self.digit_bits != 0)

    def _diverse(self, bucket: Bucket, node: Contact) -> bool:
        if self._exempt(node):
            return True
        if self._groups.get(node.group, 0) >= GROUP_PER_TABLE:
            return False
        return sum(1 for c in bucket.nodes.values() if c.group == node.group) < GROUP_PER_BUCKET

    def remove_contact(self, node: Contact) -> None:
        """Remove a node that does not answer; the freshest replacement takes its place."""
        bucket = self.buckets[self.get_bucket_for(node)]
        known = bucket.nodes.get(node.id)
        bucket.named.pop(node.id, None)
        if known is None:
            bucket.replacement_nodes.pop(node.id, None)
            return
        before = set(bucket.nodes)
        bucket.remove_node(node)
        self._forget(known)
        for node_id in bucket.nodes.keys() - before:
            self._count(bucket.nodes[node_id])

    def _count(self, contact: Contact) -> None:
        self._groups[contact.group] = self._groups.get(contact.group, 0) + 1
        self.size += 1

    def _forget(self, contact: Contact) -> None:
        self.size -= 1
        left = self._groups[contact.group] - 1
        if left:
            self._groups[contact.group] = left
        else:
            del self._groups[contact.group]

    def closest(
        self, target: int, count: int, skip: Callable[[Contact], bool] | None = None, *, named: bool = False
    ) -> list[Contact]:
        """The `count` known nodes closest to `target`, closest first, without those that `skip` is true of.

        With `named`: those that were only named, too.

        The ranges of buckets are aligned powers of two, so by XOR distance they do not interleave: the buckets in
        order of distance, each sorted, are all nodes in order of distance.
        """
        out: list[Contact] = []
        order = [((b.low ^ target) >> b.bits << b.bits, b) for b in self.buckets]
        order.sort(key=_first)
        for _, bucket in order:
            if not bucket.nodes and not named:
                continue
            nodes = [(c.long_id ^ target, c) for c in bucket.nodes.values()]
            if named:
                nodes += [(c.long_id ^ target, c) for c in bucket.named.values()]
            nodes.sort(key=_first)
            if skip is None:
                out += [c for _, c in nodes]
            else:
                out += [c for _, c in nodes if not skip(c)]
            if len(out) >= count:
                del out[count:]
                break
        return out


def private_scope(contact: Contact) -> bool:
    """Whether the contact's address is on this machine or a private network."""
    return contact.scope in (Scope.LOOPBACK, Scope.PRIVATE)
