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

# SITE: containers (docs/slurm.md): what starts Python inside, or options of srun that do
# MINIMOE_PYTHON="apptainer exec --nv --bind /shared /shared/minimoe-dist.sif python3"
# MINIMOE_SRUN="--container-image=/shared/minimoe-dist.sqsh --container-mounts=/shared"
# MINIMOE_JOB_PYTHON=/shared/venv/bin/python

# The Python that has minimoe-dist: the one of `minimoe-dist submit`, or the clone's.
if [[ -z ${MINIMOE_PYTHON:-} ]]; then
    MINIMOE_PYTHON=$MINIMOE_SLURM/../.venv/bin/python
    [[ -x $MINIMOE_PYTHON ]] || MINIMOE_PYTHON=python3
fi

# words_of NAME TEXT: TEXT as the array NAME: one word if that is a program, else a command's words
words_of() {
    local -n words=$1
    if command -v -- "$2" >/dev/null; then words=("$2"); else read -ra words <<<"$2"; fi
}
# In the tasks; around them, where Slurm's commands are; and further options of srun.
words_of minimoe_python "$MINIMOE_PYTHON"
words_of minimoe_job_python "${MINIMOE_JOB_PYTHON:-$MINIMOE_PYTHON}"
read -ra minimoe_srun <<<"${MINIMOE_SRUN:-}"
export MINIMOE_PYTHON ${MINIMOE_JOB_PYTHON:+MINIMOE_JOB_PYTHON}
