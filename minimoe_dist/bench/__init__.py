"""What a machine does and how long a step takes on it, by the clock."""
