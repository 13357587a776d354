"""Imported once by the server that test processes are forked from (see distributed.py).

All that a run imports or finds out by and by comes here, or each forked process would do it again:
what DeepSpeed loads to look at an optimizer takes a second of processor time alone.
"""

import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops
import deepspeed.runtime.zero.muon.muon_optimizer
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import tensorboard.compat.proto.event_pb2
import tensorboard.compat.proto.summary_pb2
import tensorboard.summary.writer.record_writer  # noqa: F401
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import minimoe_dist.cli
import minimoe_dist.commands.distill
import minimoe_dist.commands.finetune
import minimoe_dist.commands.sparsify
import minimoe_dist.data.compiled.drawing
import minimoe_dist.data.compiled.layout
import minimoe_dist.data.compiled.masking
import minimoe_dist.data.compiled.order
import minimoe_dist.data.compiled.packing
import minimoe_dist.preflight.recipes
import minimoe_dist.train.distillation  # noqa: F401

torch.set_num_threads(1)
assert deepspeed.ops.__compatible_ops__  # asks the compiler
get_checkpoint_conversion_mapping("bert")  # compiles a thousand expressions
