"""The keys of an unlocked node, each made when first asked for (DESIGN section 4)."""

from __future__ import annotations

from functools import cached_property

from dht.contact import PUZZLE_BITS
from dht.node import mine_node_key
from escrow.keys import public_key
from escrow.seed import EscrowRole, Seed
from protocol.errors import NotFound
from protocol.identity import SigningKey
from protocol.types import Network, Side


class Keyring:
    """Keys derived from the seed. Personas are numbered from 0; the first is the default."""

    def __init__(self, seed: Seed, network: Network, *, personas: int = 1) -> None:
        self.seed = seed
        self._network = network
        self._personas = {key.public: (i, key) for i in range(personas) for key in (SigningKey(seed.persona_key(i)),)}

    @cached_property
    def node(self) -> SigningKey:
        """The node key: the first one of the seed that solves the DHT's puzzle."""
        _, key = mine_node_key(self.seed.node_key, PUZZLE_BITS[self._network])
        return key

    @property
    def persona(self) -> SigningKey:
        """The default persona."""
        return next(iter(self._personas.values()))[1]

    def persona_key(self, persona: bytes) -> SigningKey:
        """The key of one of our personas. Raises NotFound."""
        return self._entry(persona)[1]

    def owns(self, persona: bytes) -> bool:
        """Whether that persona is ours."""
        return persona in self._personas

    @property
    def arbiter_base_point(self) -> bytes:
        """The base point that the default persona announces as an arbiter, compressed."""
        return public_key(self.arbiter_secret(self.persona.public))

    def arbiter_secret(self, persona: bytes) -> bytes:
        """The secp256k1 base key of one of our personas as an arbiter. Raises NotFound."""
        return self.seed.arbiter_base_key(self._entry(persona)[0])

    def bond_secret(self, persona: bytes, lock_height: int) -> bytes:
        """The secp256k1 key of a bond of one of our personas. Raises NotFound."""
        return self.seed.bond_key(self._entry(persona)[0], lock_height)

    def escrow_secrets(self, trade_id: bytes, side: Side) -> tuple[bytes, bytes]:
        """Our secp256k1 escrow keys of a trade: main branch, backup branch."""
        if side is Side.BUY:
            roles = (EscrowRole.BUYER, EscrowRole.BUYER_BACKUP)
        else:
            roles = (EscrowRole.SELLER, EscrowRole.SELLER_BACKUP)
        main, backup = (self.seed.escrow_key(trade_id, role) for role in roles)
        return main, backup

    def escrow_keys(self, trade_id: bytes, side: Side) -> tuple[bytes, bytes]:
        """The public keys of `escrow_secrets`, compressed."""
        main, backup = self.escrow_secrets(trade_id, side)
        return public_key(main), public_key(backup)

    def _entry(self, persona: bytes) -> tuple[int, SigningKey]:
        try:
            return self._personas[persona]
        except KeyError:
            raise NotFound("that persona is not one of this node's") from None
