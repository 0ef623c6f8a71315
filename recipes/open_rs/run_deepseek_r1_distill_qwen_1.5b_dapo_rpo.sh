#!/usr/bin/env bash
# The DAPO script beside this one with RPO, and nothing else. RPO=paper takes the paper's literal settings.
set -euo pipefail

export EXPERIMENT=${EXPERIMENT:-deepseek_r1_distill_qwen_1.5b_dapo_rpo}
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_deepseek_r1_distill_qwen_1.5b_dapo.sh" +rpo="${RPO:-enabled}" "$@"
