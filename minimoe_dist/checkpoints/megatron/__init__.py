"""Converts Megatron-LM's BERT checkpoints to and from Hugging Face's ``megatron-bert`` folders.

`writing` is the Megatron side, `folders` the Hugging Face side, `forward` computes what a
checkpoint computes as Megatron's ranks would, and `converting` is what the command calls. They are
read by `models.megatron`, and found and described by `megatron_files`.
"""
