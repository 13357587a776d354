"""Megatron-LM's BERT checkpoints, to and from Hugging Face's ``megatron-bert`` folders.

`finding` looks for the files of all ranks, `unpickling` reads one without running anything,
`layout` knows the names and `splitting` the parts of a tensor in both layouts, `reading` and
`writing` are the Megatron side, `folders` the Hugging Face side, `forward` computes what a
checkpoint computes as Megatron's ranks would, and `converting` is what a command calls. Nothing is
imported here, since `finding` serves where torch is not to be loaded.
"""
