"""Finds what is wrong with the nodes of a job, alone and together, and names the remedies."""
