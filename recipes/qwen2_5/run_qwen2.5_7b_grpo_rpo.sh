#!/usr/bin/env bash
# The GRPO script beside this one with RPO, and nothing else. RPO=paper takes the paper's settings.
set -xeuo pipefail

############################# knobs #############################
RPO=${RPO:-enabled}
export EXPERIMENT=${EXPERIMENT:-qwen2.5_7b_grpo_rpo_$RPO}
#################################################################

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2.5_7b_grpo.sh" +rpo="$RPO" "$@"
