#!/bin/bash
# A recipe's stages as a chain of jobs; finished ones are left out. Start it on a login node:
#   bash slurm/chain.sh RECIPE [--nodes 2 …] [key.path=value …]
MINIMOE_SLURM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export MINIMOE_SLURM
source "$MINIMOE_SLURM/env.sh"
exec "${minimoe_job_python[@]}" -m minimoe_dist submit "$@"
