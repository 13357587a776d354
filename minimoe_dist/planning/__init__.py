"""Predicts what a run needs on a machine: memory, traffic, time and cost."""
