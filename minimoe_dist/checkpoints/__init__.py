"""Checkpoints: of runs, and of foreign layouts."""
