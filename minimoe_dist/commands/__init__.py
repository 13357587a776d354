"""What each subcommand does: wires rooms together, with no logic of its own."""
