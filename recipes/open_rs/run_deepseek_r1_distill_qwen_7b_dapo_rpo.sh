#!/usr/bin/env bash
# The 1.5B script of the same name with the 7B model and what its size asks for.
set -xeuo pipefail

############################# knobs #############################
export MODEL_PATH=${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}
export MODEL_SIZE=7B
export MODEL_NAME=deepseek_r1_distill_qwen_7b
#################################################################

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_deepseek_r1_distill_qwen_1.5b_dapo_rpo.sh" "$@"
