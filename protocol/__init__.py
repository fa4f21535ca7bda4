"""Pure rules of p2pnode: wire format, identities, offers, contracts and the trade machine. No I/O."""
