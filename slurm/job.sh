# shellcheck shell=bash
# What every training job does: one srun, and what its end calls for. MINIMOE_SLURM is this folder.
set -uo pipefail
source "$MINIMOE_SLURM/env.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# launch COMMAND ARGUMENTS…
launch() {
    local command=$1 status=0
    local around=("${minimoe_job_python[@]}" -m minimoe_dist.slurm.job)
    shift
    # What was to start anew at first must not do so at every restart.
    if ((${SLURM_RESTART_COUNT:-0})); then set -- "$@" --resume=auto; fi
    # Slurm's SIGTERM reaches this shell too, which has to live until the ranks have saved.
    trap : TERM
    "${around[@]}" begin "$command" "$@" || exit
    srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
        "${minimoe_srun[@]}" "${minimoe_python[@]}" -m minimoe_dist.slurm.task "$command" "$@" || status=$?
    "${around[@]}" end "$status" "$command" "$@"
    exit
}
