"""What the command line is made of, beside its verbs: reading what was typed, showing what came back, set-up and start.

`cli.py` has the verbs and talks to the daemon through `p2pnode.client`. Here is the rest, in modules that are loaded
when a verb needs them, so that `--help` is quick.
"""
