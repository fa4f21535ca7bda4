"""How `host:port` is written, and why a listener could not be opened, in a line that names the setting to change."""

from __future__ import annotations

import errno

from protocol.errors import UserError


class AddressUnavailable(UserError):
    """Another program listens on that port, or the address is not this machine's."""

    code = 3130


def host_port(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unavailable(error: OSError, host: str, port: int, setting: str) -> AddressUnavailable:
    """What to tell the user when `host:port` could not be bound; `setting` is the key that names the port."""
    where = host_port(host, port)
    section = setting.partition(".")[0]
    match error.errno:
        case errno.EADDRINUSE:
            return AddressUnavailable(f"port {port} is in use by another program: stop it or change {setting}")
        case errno.EACCES | errno.EPERM:
            return AddressUnavailable(f"this user may not listen on {where}: choose a port over 1023 for {setting}")
        case errno.EADDRNOTAVAIL:
            return AddressUnavailable(f"{host} is not an address of this machine: change {section}.host")
        case _:
            return AddressUnavailable(f"can't listen on {where} ({error.strerror or error}): see [{section}]")
