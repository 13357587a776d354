"""Conversions of Megatron checkpoints."""
