#!/usr/bin/env bash
# The DAPO script beside this one with RPO, and nothing else. RPO=paper takes the paper's settings.
set -xeuo pipefail

############################# knobs #############################
RPO=${RPO:-enabled}
export EXPERIMENT=${EXPERIMENT:-${MODEL_NAME:-deepseek_r1_distill_qwen_1.5b}_dapo_rpo_$RPO}
#################################################################

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_deepseek_r1_distill_qwen_1.5b_dapo.sh" +rpo="$RPO" "$@"
