"""Two sessions back to back, in memory, with a clock that moves when told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from protocol.frames import Frame, encode
from protocol.identity import SigningKey
from protocol.session import Connected, Event, Role, Session, Settings
from protocol.streams import BodyLimits, BodyReceived
from protocol.types import Network

ECHO = 1
ALICE = SigningKey(b"\x0a" * 32)
BOB = SigningKey(b"\x0b" * 32)
ROOMY = Settings(max_inbound_bytes=1 << 30)
LIMITS: Mapping[int, BodyLimits] = {ECHO: BodyLimits(2_000_000, 2_000_000)}


def source(seed: int) -> Callable[[], bytes]:
    """Ephemeral secrets that differ by `seed`; each session may ask once."""
    return [bytes([seed]) * 32].pop


def initiator(
    *,
    key: SigningKey = ALICE,
    remote: bytes = BOB.public,
    network: Network = Network.REGTEST,
    now: float = 0.0,
    settings: Settings | None = None,
) -> Session:
    return Session(Role.INITIATOR, key, remote, source(0xE1), network, now, services=LIMITS, settings=settings or ROOMY)


def responder(
    *,
    key: SigningKey = BOB,
    network: Network = Network.REGTEST,
    now: float = 0.0,
    settings: Settings | None = None,
    services: Mapping[int, BodyLimits] = LIMITS,
) -> Session:
    return Session(Role.RESPONDER, key, None, source(0xE2), network, now, services=services, settings=settings or ROOMY)


class Pair:
    """A connected initiator and responder, and what each has been told."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        responder_settings: Settings | None = None,
        services: Mapping[int, BodyLimits] = LIMITS,
    ) -> None:
        self.now = 0.0
        self.initiator = initiator(settings=settings)
        self.responder = responder(settings=responder_settings or settings, services=services)
        assert self.pump() == ([Connected(BOB.public)], [Connected(ALICE.public)])

    def pump(self) -> tuple[list[Event], list[Event]]:
        """Carry bytes until both are quiet; the new events of the initiator and of the responder."""
        while True:
            out = self.initiator.data_to_send()
            self.responder.receive_data(out, self.now)
            back = self.responder.data_to_send()
            self.initiator.receive_data(back, self.now)
            if not out and not back:
                return drain(self.initiator), drain(self.responder)

    def inject(self, *frames: Frame | tuple[int, int, bytes] | tuple[int, int, bytes, int]) -> None:
        """Have the initiator send frames that its own code would not, correctly encrypted."""
        self.responder.receive_data(forge(self.initiator, *frames), self.now)

    def exchange(self, request: bytes, reply: bytes) -> bytes:
        """One whole exchange; the reply as the initiator got it."""
        stream = self.initiator.open_stream(ECHO, request, reply_limit=2_000_000)
        got = bytearray()
        done = replied = False
        while not done:
            mine, theirs = self.pump()
            assert mine or theirs, "nothing moves any more"
            for event in theirs:
                if isinstance(event, BodyReceived):
                    self.responder.consume(event.stream, len(event.data))
                    if event.end and not replied:
                        replied = True
                        self.responder.send(event.stream, reply, end=True)
            for event in mine:
                assert isinstance(event, BodyReceived), event
                self.initiator.consume(stream, len(event.data))
                got += event.data
                done = event.end
        return bytes(got)


def drain(session: Session) -> list[Event]:
    events = []
    while (event := session.next_event()) is not None:
        events.append(event)
    return events


def forge(session: Session, *frames: Frame | tuple[int, int, bytes] | tuple[int, int, bytes, int]) -> bytes:
    """Bytes as if `session` had sent these frames (kind, stream, payload, flags)."""
    return seal(session, [encode(f[0], f[1], f[3] if len(f) > 3 else 0, f[2]) for f in frames])


def seal(session: Session, plaintexts: Sequence[bytes]) -> bytes:
    """Bytes as if `session` had sent these plaintexts."""
    assert session._sealer is not None
    return b"".join(session._sealer.seal(plaintext) for plaintext in plaintexts)
