"""Error codes are part of the protocol and of the API: one code, one meaning."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict

from protocol.errors import Action, Fault, P2PError

PACKAGES = ("protocol", "dht", "escrow", "p2pnode")
RANGES = {Fault.OURS: 1000, Fault.PEER: 2000, Fault.USER: 3000, Fault.CHAIN: 4000}


def every_error() -> list[type[P2PError]]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: list[type[P2PError]] = []
    waiting = [P2PError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.split(".")[0] in PACKAGES:
            found.append(cls)
    return found


def test_two_errors_never_share_a_code() -> None:
    """A peer that is refused with a code would be told the wrong reason."""
    by_code: defaultdict[int, list[str]] = defaultdict(list)
    for cls in every_error():
        if "code" in vars(cls):
            by_code[cls.code].append(f"{cls.__module__}.{cls.__name__}")
    assert {code: names for code, names in by_code.items() if len(names) > 1} == {}


def test_every_error_has_a_sentence_for_the_user_and_its_own_code() -> None:
    for cls in every_error():
        sentence = (cls.__doc__ or "").strip().splitlines()[0]
        assert sentence.endswith((".", "?")), cls
        assert isinstance(cls.action, Action)
        assert "code" in vars(cls), f"{cls} needs a code of its own"


def test_codes_lie_in_the_range_of_whose_fault_it_is() -> None:
    for cls in every_error():
        assert cls.code // 1000 * 1000 == RANGES[cls.fault], cls
