"""Imported once by the server that test processes are forked from (see distributed.py)."""

import deepspeed  # noqa: F401
import matplotlib.figure  # noqa: F401
import torch
import torch.utils.tensorboard

import minimoe_dist.commands.distill
import minimoe_dist.train.distillation  # noqa: F401

torch.set_num_threads(1)
