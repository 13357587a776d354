"""Reads micro-batches without the interpreter: compiled by numba, holding no interpreter lock.

Pairs are drawn and laid out by a thread beside the training step, and Python code there would take
the interpreter from the step. So the whole rule of drawing, the order of samples, layout and masks
are functions over arrays, of a whole micro-batch a call; see ``compiling`` for how they are
compiled and kept. Nothing here is imported before pairs are drawn: the import takes a second.
"""
