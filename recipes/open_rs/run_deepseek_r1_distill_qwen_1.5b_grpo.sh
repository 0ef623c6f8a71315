#!/usr/bin/env bash
# GRPO for DeepSeek-R1-Distill-Qwen-1.5B on open-rs, with the settings of the RPO paper (arXiv 2601.19404, section 4.1):
# 576 responses a step in groups of 6, temperature 0.7, up to 4,096 tokens, 4 epochs, all weights trained.
set -xeuo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
############################# knobs #############################
# SCALE, NNODES, N_GPUS_PER_NODE, OFFLOAD, OFFLOAD_POLICY, ROLLOUT_TP
MODEL_SIZE=${MODEL_SIZE:-1.5B}
source "$HERE/../scale.sh"

PYTHON=${PYTHON:-python3}
MODEL_PATH=${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
DATA_DIR=${DATA_DIR:-$HOME/data}
TRAIN_FILES=${TRAIN_FILES:-"['$DATA_DIR/open_rs/train.parquet']"}
VAL_FILES=${VAL_FILES:-"['$DATA_DIR/aime24/test.parquet','$DATA_DIR/amc23/test.parquet','$DATA_DIR/math500/test.parquet']"}
REWARD_FILE=${REWARD_FILE:-pkg://rpo_verl.rewards.math}
EXPERIMENT=${EXPERIMENT:-deepseek_r1_distill_qwen_1.5b_grpo}
RUN_DIR=${RUN_DIR:-$PWD/runs/open_rs/$EXPERIMENT}
LOGGER=${LOGGER:-"['console','tensorboard']"}

EPOCHS=${EPOCHS:-4}
SEED=${SEED:-42}
QUESTIONS_PER_STEP=${QUESTIONS_PER_STEP:-96}
GROUP_SIZE=${GROUP_SIZE:-6}
TEMPERATURE=${TEMPERATURE:-0.7}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-512}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}
# Not in the paper's text; from its authors' code and, for KL, from the library that it builds on.
LEARNING_RATE=${LEARNING_RATE:-1e-6}
WARMUP_RATIO=${WARMUP_RATIO:-0.1}
MIN_LR_RATIO=${MIN_LR_RATIO:-0.1}
KL_COEF=${KL_COEF:-0.04}

# Per GPU.
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-$((4 * (MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH)))}
ROLLOUT_TP=${ROLLOUT_TP:-1}
GPU_MEMORY_UTILIZATION=${GPU_MEMORY_UTILIZATION:-0.6}
USE_REMOVE_PADDING=${USE_REMOVE_PADDING:-True}
TEST_FREQ=${TEST_FREQ:-20}
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
)

MODEL=(
    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.model.use_remove_padding="$USE_REMOVE_PADDING"
)

ACTOR=(
    algorithm.adv_estimator=grpo
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.optim.lr="$LEARNING_RATE"
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio="$WARMUP_RATIO"
    actor_rollout_ref.actor.optim.min_lr_ratio="$MIN_LR_RATIO"
    actor_rollout_ref.actor.ppo_mini_batch_size="$QUESTIONS_PER_STEP"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS_PER_GPU"
    # The paper's objective takes the mean over a response first (equation 5).
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.offload_policy="$OFFLOAD_POLICY"
)

if [[ $KL_COEF != 0 ]]; then
    ACTOR+=(actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef="$KL_COEF")
fi

ROLLOUT=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n="$GROUP_SIZE"
    actor_rollout_ref.rollout.temperature="$TEMPERATURE"
    actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY_UTILIZATION"
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6
    actor_rollout_ref.rollout.val_kwargs.top_p=0.95
)

TRAINER=(
    trainer.logger="$LOGGER"
    trainer.project_name=rpo_verl_open_rs
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
