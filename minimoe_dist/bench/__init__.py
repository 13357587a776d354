"""Measures a machine, and how long a step takes on it, by the clock."""
