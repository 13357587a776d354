"""Finds what would make a subcommand fail, before it starts and before torch is imported."""
