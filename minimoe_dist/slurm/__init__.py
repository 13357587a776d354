"""Slurm: job scripts, what a job does around its srun, the queue, a run's starts.

Pure parts and small files only; ``job`` alone knows recipes and runs. Nothing here imports torch.
"""
