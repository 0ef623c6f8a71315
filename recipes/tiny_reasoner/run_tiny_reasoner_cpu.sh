#!/usr/bin/env bash
# GRPO on the tiny reasoner, on a machine without a GPU. With RPO:  bash run_tiny_reasoner_cpu.sh +rpo=enabled
set -xeuo pipefail

############################# knobs #############################
REPO_DIR=${REPO_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
PYTHON=${PYTHON:-python}
MODEL_PATH=${MODEL_PATH:-$REPO_DIR/examples/tiny_reasoner/checkpoint}
REWARD_FILE=${REWARD_FILE:-$REPO_DIR/examples/tiny_reasoner/reward.py}
DATA_DIR=${DATA_DIR:?folder with train.parquet and val.parquet, written by examples/tiny_reasoner/prepare_data.py}
RUN_DIR=${RUN_DIR:-runs/tiny_reasoner}
EXPERIMENT=${EXPERIMENT:-tiny_reasoner}

STEPS=${STEPS:-60}
SEED=${SEED:-1}
QUESTIONS_PER_STEP=${QUESTIONS_PER_STEP:-8}
GROUP_SIZE=${GROUP_SIZE:-8}
BYPASS_OLD_LOG_PROB=${BYPASS_OLD_LOG_PROB:-true}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-16}
LEARNING_RATE=${LEARNING_RATE:-3e-4}
LEARNING_RATE_SCHEDULE=${LEARNING_RATE_SCHEDULE:-cosine}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-72}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-208}
TEST_FREQ=${TEST_FREQ:-30}
#################################################################

export VERL_PLATFORM=cpu
export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$RUN_DIR/metrics.jsonl}
mkdir -p "$(dirname "$VERL_FILE_LOGGER_PATH")"  # veRL makes no folder for this file

DATA=(
    data.train_files="$DATA_DIR/train.parquet"
    data.val_files="$DATA_DIR/val.parquet"
    data.train_batch_size="$QUESTIONS_PER_STEP"
    data.max_prompt_length="$MAX_PROMPT_LENGTH"
    data.max_response_length="$MAX_RESPONSE_LENGTH"
    data.seed="$SEED"
    reward.custom_reward_function.path="$REWARD_FILE"
    reward.custom_reward_function.name=compute_score
)

MODEL=(
    actor_rollout_ref.model.path="$MODEL_PATH"
)

ACTOR=(
    algorithm.adv_estimator=grpo
    actor_rollout_ref.actor.optim.lr="$LEARNING_RATE"
    actor_rollout_ref.actor.optim.lr_scheduler_type="$LEARNING_RATE_SCHEDULE"
    actor_rollout_ref.actor.ppo_mini_batch_size="$QUESTIONS_PER_STEP"
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu="$MICRO_BATCH_SIZE"
)

ROLLOUT=(
    actor_rollout_ref.rollout.n="$GROUP_SIZE"
    actor_rollout_ref.rollout.temperature=1.0
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu="$MICRO_BATCH_SIZE"
    # vLLM and the trainer agree in float32 (tests/real/test_rpo_run.py), so its log-probabilities serve as the old ones.
    algorithm.rollout_correction.bypass_mode="$BYPASS_OLD_LOG_PROB"
    actor_rollout_ref.rollout.val_kwargs.do_sample=true
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0
    actor_rollout_ref.rollout.val_kwargs.top_p=1.0
)

TRAINER=(
    trainer.logger='[console,file]'
    trainer.project_name=rpo_verl
    trainer.experiment_name="$EXPERIMENT"
    trainer.default_local_dir="$RUN_DIR/checkpoints"
    trainer.total_training_steps="$STEPS"
    trainer.total_epochs=1000
    trainer.test_freq="$TEST_FREQ"
    trainer.save_freq=-1
    trainer.resume_mode=disable
    # Where rpo-verl report finds the settings of the run.
    hydra.run.dir="$RUN_DIR/hydra"
)

"$PYTHON" -m verl.trainer.main_ppo \
    +platform=cpu \
    "${DATA[@]}" \
    "${MODEL[@]}" \
    "${ACTOR[@]}" \
    "${ROLLOUT[@]}" \
    "${TRAINER[@]}" \
    "$@"
