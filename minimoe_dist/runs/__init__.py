"""A run's folder: what lies in it where, and what its files say.

Nothing else knows the names of these files or the keys in them. Reading needs no torch, ignores
keys that it does not know, and has defaults for what an earlier version did not write.
"""
