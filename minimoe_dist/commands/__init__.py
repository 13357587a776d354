"""Runs each subcommand: wires rooms together, with no logic of its own."""
