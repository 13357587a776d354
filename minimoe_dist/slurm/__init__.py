"""Slurm: job scripts, the queue, a run's starts, the local ranks of a task.

Pure parts and small files only: what knows recipes and runs is in ``commands``. Nothing here
imports torch.
"""
