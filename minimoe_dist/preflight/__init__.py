"""What would make a subcommand fail, found before it starts and before torch is imported."""
