# shellcheck shell=bash
# Where a corpus and its shares go, for the jobs that build and join them: source corpus.sh "$@"
set -euo pipefail
source "$MINIMOE_SLURM/env.sh"

# value_of NAME DEFAULT ARGUMENT…: what stands behind the last --NAME
value_of() {
    local name=$1 value=$2
    shift 2
    while (($#)); do
        case $1 in
            "--$name") value=${2:-} ;;
            "--$name="*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$value"
}

tools=$MINIMOE_SLURM/../tools/preprocess
prefix=$(value_of output_prefix corpus "$@")
output_dir=$(value_of output_dir '' "$@")
if [[ -z $output_dir ]]; then
    echo "--output_dir is missing; give the arguments of build_indexed.py" >&2
    exit 2
fi
parts=${output_dir%/}.parts
export tools prefix output_dir parts
