#!/usr/bin/env bash
# DAPO for DeepSeek-R1-Distill-Qwen-1.5B on open-rs: the GRPO script beside this one, with what makes it DAPO.
set -xeuo pipefail

############################# knobs #############################
export EXPERIMENT=${EXPERIMENT:-deepseek_r1_distill_qwen_1.5b_dapo}
export KL_COEF=${KL_COEF:-0}
export MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}
OVERLONG_BUFFER=${OVERLONG_BUFFER:-$((MAX_RESPONSE_LENGTH / 8))}
#################################################################

DAPO=(
    actor_rollout_ref.actor.clip_ratio_low=0.2
    actor_rollout_ref.actor.clip_ratio_high=0.28
    actor_rollout_ref.actor.clip_ratio_c=10.0
    actor_rollout_ref.actor.loss_agg_mode=token-mean
    reward.reward_manager.name=dapo
    +reward.reward_kwargs.overlong_buffer_cfg="{enable: true, len: $OVERLONG_BUFFER, penalty_factor: 1.0, log: false}"
    +reward.reward_kwargs.max_resp_len="$MAX_RESPONSE_LENGTH"
    algorithm.filter_groups.enable=True
    algorithm.filter_groups.metric=acc
)

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_deepseek_r1_distill_qwen_1.5b_grpo.sh" "${DAPO[@]}" "$@"
