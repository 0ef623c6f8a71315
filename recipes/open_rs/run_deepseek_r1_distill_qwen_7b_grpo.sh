#!/usr/bin/env bash
# The 1.5B script of the same name with the 7B model and what its size asks for.
set -xeuo pipefail

############################# knobs #############################
export MODEL_PATH=${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}
export EXPERIMENT=${EXPERIMENT:-deepseek_r1_distill_qwen_7b_grpo}
export MODEL_SIZE=7B
#################################################################

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_deepseek_r1_distill_qwen_1.5b_grpo.sh" "$@"
