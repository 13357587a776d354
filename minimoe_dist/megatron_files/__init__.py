"""Megatron-LM's BERT checkpoints as far as they can be known without torch.

`finding` looks for the files of all ranks, `naming` knows the names and shapes of the weights in
them, `arguments` what they say of the model, `checkpoints` puts the ranks together and checks that
they are one model's, and `headers` reads of the files what that takes. Their numbers are read by
`models.megatron`, and `checkpoints.megatron` converts.
"""
