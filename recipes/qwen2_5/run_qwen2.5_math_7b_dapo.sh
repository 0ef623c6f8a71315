#!/usr/bin/env bash
# DAPO for Qwen2.5-Math-7B on DAPO-Math-17k, with the settings of veRL's DAPO recipe for it, in the 4,096 tokens of
# context that the model comes with: 3,072 for a response.
set -xeuo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
############################# knobs #############################
# SCALE, NNODES, N_GPUS_PER_NODE, OFFLOAD, OFFLOAD_POLICY, ROLLOUT_TP
MODEL_SIZE=${MODEL_SIZE:-7B}
source "$HERE/../scale.sh"

PYTHON=${PYTHON:-python3}
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen2.5-Math-7B}
DATA_DIR=${DATA_DIR:-$HOME/data}
TRAIN_FILES=${TRAIN_FILES:-"['$DATA_DIR/dapo_math_17k/train.parquet']"}
VAL_FILES=${VAL_FILES:-"['$DATA_DIR/aime24/test.parquet']"}
REWARD_FILE=${REWARD_FILE:-pkg://rpo_verl.rewards.math}
EXPERIMENT=${EXPERIMENT:-qwen2.5_math_7b_dapo}
RUN_DIR=${RUN_DIR:-$PWD/runs/qwen2_5/$EXPERIMENT}
LOGGER=${LOGGER:-"['console','tensorboard']"}

EPOCHS=${EPOCHS:-10}
SEED=${SEED:-42}
QUESTIONS_PER_STEP=${QUESTIONS_PER_STEP:-512}
MINI_BATCH=${MINI_BATCH:-32}
GROUP_SIZE=${GROUP_SIZE:-16}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-1024}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-3072}
LEARNING_RATE=${LEARNING_RATE:-1e-6}
WARMUP_STEPS=${WARMUP_STEPS:-10}
WEIGHT_DECAY=${WEIGHT_DECAY:-0.1}
OVERLONG_BUFFER=${OVERLONG_BUFFER:-$((MAX_RESPONSE_LENGTH / 6))}

# Per GPU.
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-$((4 * (MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH)))}
ROLLOUT_TP=${ROLLOUT_TP:-2}
GPU_MEMORY_UTILIZATION=${GPU_MEMORY_UTILIZATION:-0.6}
USE_REMOVE_PADDING=${USE_REMOVE_PADDING:-True}
TEST_FREQ=${TEST_FREQ:-5}
SAVE_FREQ=${SAVE_FREQ:-20}
KEEP=${KEEP:-2}
#################################################################

export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$RUN_DIR/metrics.jsonl}
export TENSORBOARD_DIR=${TENSORBOARD_DIR:-$RUN_DIR/tensorboard}

DATA=(
    data.train_files="$TRAIN_FILES"
    data.val_files="$VAL_FILES"
    data.train_batch_size="$QUESTIONS_PER_STEP"
    data.max_prompt_length="$MAX_PROMPT_LENGTH"
    data.max_response_length="$MAX_RESPONSE_LENGTH"
    data.filter_overlong_prompts=True
    data.seed="$SEED"
    reward.custom_reward_function.path="$REWARD_FILE"
    reward.reward_manager.name=dapo
    +reward.reward_kwargs.overlong_buffer_cfg="{enable: true, len: $OVERLONG_BUFFER, penalty_factor: 1.0, log: false}"
    +reward.reward_kwargs.max_resp_len="$MAX_RESPONSE_LENGTH"
)

MODEL=(
    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.model.use_remove_padding="$USE_REMOVE_PADDING"
)

ACTOR=(
    algorithm.adv_estimator=grpo
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.optim.lr="$LEARNING_RATE"
    actor_rollout_ref.actor.optim.lr_warmup_steps="$WARMUP_STEPS"
    actor_rollout_ref.actor.optim.weight_decay="$WEIGHT_DECAY"
    actor_rollout_ref.actor.ppo_mini_batch_size="$MINI_BATCH"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS_PER_GPU"
    actor_rollout_ref.actor.clip_ratio_low=0.2
    actor_rollout_ref.actor.clip_ratio_high=0.28
    actor_rollout_ref.actor.clip_ratio_c=10.0
    actor_rollout_ref.actor.loss_agg_mode=token-mean
    algorithm.filter_groups.enable=True
    algorithm.filter_groups.metric=acc
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.offload_policy="$OFFLOAD_POLICY"
)

ROLLOUT=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n="$GROUP_SIZE"
    actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY_UTILIZATION"
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0
    actor_rollout_ref.rollout.val_kwargs.top_p=0.7
)

TRAINER=(
    trainer.logger="$LOGGER"
    trainer.project_name=rpo_verl_qwen2_5
    trainer.experiment_name="$EXPERIMENT"
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$N_GPUS_PER_NODE"
    trainer.total_epochs="$EPOCHS"
    trainer.test_freq="$TEST_FREQ"
    trainer.save_freq="$SAVE_FREQ"
    trainer.max_actor_ckpt_to_keep="$KEEP"
    trainer.default_local_dir="$RUN_DIR/checkpoints"
    hydra.run.dir="$RUN_DIR/hydra"
    # Ray that runs already does not hand the environment on.
    +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="$VERL_FILE_LOGGER_PATH"
    +ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR="$TENSORBOARD_DIR"
)

"$PYTHON" -m verl.trainer.main_ppo \
    "${DATA[@]}" \
    "${MODEL[@]}" \
    "${ACTOR[@]}" \
    "${ROLLOUT[@]}" \
    "${TRAINER[@]}" \
    "$@"
