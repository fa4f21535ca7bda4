"""The verbs of the command line, a file for each family: its grammar, and what carries it out."""
