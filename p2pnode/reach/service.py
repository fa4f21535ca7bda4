"""The relay service's door: what kind of stream was opened, and whose business it is (SPEC section 7)."""

from __future__ import annotations

import asyncio
from typing import Final, assert_never

from p2pnode.channels import Pipe
from p2pnode.reach.errors import BadRelayRequest
from p2pnode.reach.probe import Helper
from p2pnode.reach.registrar import Registrar
from p2pnode.reach.relay import Relay
from protocol.relay import Op

HEAD_SECONDS: Final = 10.0


class RelayDoor:
    """Streams of service 4."""

    def __init__(self, relay: Relay, helper: Helper, registrar: Registrar) -> None:
        self._relay = relay
        self._helper = helper
        self._registrar = registrar

    async def serve(self, pipe: Pipe) -> None:
        """Serve one stream (`channels.PipeService`)."""
        async with asyncio.timeout(HEAD_SECONDS):
            (number,) = await pipe.read_exactly(1)
        try:
            op = Op(number)
        except ValueError as e:
            raise BadRelayRequest from e
        match op:
            case Op.REGISTER:
                await self._relay.register(pipe)
            case Op.CONNECT:
                await self._relay.connect(pipe)
            case Op.INCOMING:
                self._registrar.incoming(pipe)
            case Op.PROBE:
                await self._helper.answer(pipe)
            case _:
                assert_never(op)
