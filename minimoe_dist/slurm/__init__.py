"""Slurm: job scripts, the queue, a run's starts, the local ranks of a task.

Pure parts and small files only; ``job`` alone knows recipes and runs. Nothing here imports torch.
"""
