"""Checkpoints of runs, exports for others, foreign layouts: the published one, Megatron-LM's."""
