"""The weights in Megatron-LM's BERT checkpoints.

`unpickling` reads a rank's file without running anything, `splitting` knows how tensors are shared
among ranks, `reading` gives whole tensors or slices of them by Hugging Face's names.
"""
