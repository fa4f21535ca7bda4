"""The arbiter's side of a node: cases that it decides, from the message that opens one to the escrow's end."""
