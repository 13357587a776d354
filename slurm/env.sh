# shellcheck shell=bash
# What differs from site to site: the one file to edit. Every job reads it on its first node, and
# srun hands the variables on to all.

# SITE: modules
# module purge
# module load cuda/12.8

# SITE: the interface of the fast network, where the default route is another one
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# SITE: models and compiled operators, on the shared file system
# export HF_HOME=/shared/$USER/huggingface HF_HUB_OFFLINE=1
# export TORCH_EXTENSIONS_DIR=/shared/$USER/torch_extensions

# The Python that has minimoe-dist: the one of `minimoe-dist submit`, or the clone's.
if [[ -z ${MINIMOE_PYTHON:-} ]]; then
    MINIMOE_PYTHON=$MINIMOE_SLURM/../.venv/bin/python
    [[ -x $MINIMOE_PYTHON ]] || MINIMOE_PYTHON=python3
fi
