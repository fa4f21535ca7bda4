"""The parts of a node, put together by `p2pnode.app`: what the configuration chooses, how it listens, how it trades."""
