"""The local API (DESIGN section 12): HTTP on loopback between the daemon and its CLI, page and scripts.

`schema` holds the types that travel, `services` what the routes call. Routes decode, ask a service and encode; they
decide nothing about trades, offers or money.
"""
