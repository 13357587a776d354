"""minimoe-dist: distils large encoders into small mixture-of-experts students.

Importing the package is cheap: no torch, no transformers. ``import minimoe_dist.models.auto`` makes
transformers' automatic classes know the students.
"""

__version__ = "0.1.0"
