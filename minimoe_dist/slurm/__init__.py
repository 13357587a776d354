"""Writes Slurm job scripts, runs around a job's srun, and reads the queue and a run's starts.

These are pure functions and small files; ``job`` alone knows recipes and runs. Nothing here imports
torch.
"""
