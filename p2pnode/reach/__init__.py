"""Being reached: relays for those whom nobody can dial, and finding out whether we are one of them.

`relay` brings others together, `registrar` keeps our own relays, `probe` finds out whether peers can dial us, `portmap`
asks the router to let them, and `reachability` decides what follows and says it in our contact record.
"""

from __future__ import annotations
