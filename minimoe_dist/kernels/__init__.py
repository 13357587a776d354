"""Triton kernels, and what launches them; each module is imported only where its kernels run.

Kernels work on packed tokens: those of a batch without its padding, [T, …], sample after sample.
They keep no more than a tile of anything that grows with the square of a length, ask the host for
nothing, and sum in a fixed order, so that a step repeats bit for bit. The operators that use them,
with what they do where there is no GPU, stand beside their users: `models.packed_attention`,
`models.packed_experts`, `objectives.packed_relations`.
"""
