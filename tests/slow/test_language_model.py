"""A real language model, SmolLM2-135M, with a real verifier: every tool, six steps, and a resumed training.

Its tokenizer has what the tiny reasoner's has not: the template holds the tokens that begin and end a message, the one
that ends it fills up short rows too, and a character may take several tokens, between which a prefix may end.
`make test-slow` installs model and verifier into build/lm (`requirements/lm.txt`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, WITHOUT_CREDIT, run_recipe

from rpo_verl.rpo import store

PACKAGES = ROOT / "build" / "lm"
COMMAND = Path(sys.executable).parent / "rpo-verl"
REWARD = ROOT / "benchmarks" / "lm" / "reward.py"
#: Every process of a run finds model and verifier through it.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(PACKAGES), os.environ.get("PYTHONPATH", "")]),
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
QUESTIONS, STEPS, PROMPT, RESPONSE = 4, 6, 64, 96
BEGIN, END = 1, 2
#: Three tokens. Each line of an imported answer ends with two of them, so that many cuts fall inside one.
SMILES = "😀😀"
#: Every step behind prefixes of the imported answers. One group in two may be all wrong: answers stay.
OVERRIDES = (
    *WITHOUT_CREDIT,
    "rpo.truncation.max_fraction=1",
    "rpo.truncation.draw_per=question",
    "rpo.cache.max_failures=null",
    "trainer.val_before_train=false",
    # Behind a prefix cut anywhere the untouched model is hardly ever right; this moves its weights all the same.
    "actor_rollout_ref.actor.entropy_coeff=0.01",
)


def call(*arguments, folder, status=0):
    """Run a Python module or `rpo-verl`, and return what it printed."""
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model, data, and a store of right answers full of smiles, which the model would not give itself."""
    folder = tmp_path_factory.mktemp("language_model")
    call(sys.executable, "-m", "benchmarks.lm.convert", "--out", folder / "model", folder=folder)
    sizes = ("--train", QUESTIONS, "--val", 2)
    call(sys.executable, "-m", "benchmarks.lm.tasks", "--out", folder / "data", *sizes, folder=folder)
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(folder, "train"):
            record = {"prompt": row["prompt"], "answer": smiling_answer(row), "reward": 1.0, "correct": True}
            file.write(json.dumps(record) + "\n")
    store_of = ("--out", folder / "store", "--model", folder / "model", "--max-prompt-length", PROMPT)
    call(COMMAND, "cache", "import", folder / "answers.jsonl", *store_of, folder=folder)
    return folder


def rows(folder, split):
    return pq.read_table(folder / "data" / f"{split}.parquet").to_pylist()


def smiling_answer(row):
    """`4 - 1 + 7` as `4 - 1 = 3😀😀`, `3 + 7 = 10😀😀` and the answer."""
    first, *rest = json.loads(row["extra_info"]["entry"])["metadata"]["expression"].split()
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        line = f"{total} {operator} {term} = "
        total += int(operator + term)
        lines.append(f"{line}{total}{SMILES}")
    assert str(total) == row["reward_model"]["ground_truth"]
    return "\n".join([*lines, f"<answer>{total}</answer>"])


def train(folder, name, steps, *overrides, **knobs):
    run = run_recipe(
        folder / name,
        *OVERRIDES,
        f"rpo.cache.path={folder / 'store'}",
        f"trainer.rollout_data_dir={folder / name / 'rollouts'}",
        *overrides,
        timeout=3600,
        **ENVIRONMENT,
        **knobs_of(folder),
        STEPS=str(steps),
        **knobs,
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


def knobs_of(folder):
    return {
        "MODEL_PATH": str(folder / "model"), "DATA_DIR": str(folder / "data"), "REWARD_FILE": str(REWARD),
        "QUESTIONS_PER_STEP": "2", "MICRO_BATCH_SIZE": "2",
        "LEARNING_RATE": "1e-5", "LEARNING_RATE_SCHEDULE": "constant",
        "MAX_PROMPT_LENGTH": str(PROMPT), "MAX_RESPONSE_LENGTH": str(RESPONSE),
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(folder):
    return train(folder, "run", STEPS, f"trainer.save_freq={STEPS}", GROUP_SIZE="3")


@pytest.fixture(scope="module")
def checkpoint(run):
    return run.folder / "checkpoints" / f"global_step_{STEPS}"


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")


def dumped(run):
    """The records of all steps."""
    found = []
    for file in sorted((run.folder / "rollouts").glob("*.jsonl"), key=lambda path: int(path.stem)):
        found += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return found


def test_imported_answers_have_the_text_and_no_special_token(folder):
    cache, manifest = store.load(folder / "store")
    assert manifest.entries == QUESTIONS
    tokenizer = tokenizer_of(folder)
    given = {smiling_answer(row) for row in rows(folder, "train")}
    assert {tokenizer.decode(answer.tokens) for _, answer in cache.items()} == given
    for _, answer in cache.items():
        # The template begins the question with a message of the system, and leaves the assistant's open.
        assert answer.question[0] == BEGIN and list(answer.question).count(BEGIN) == 3
        assert list(answer.question).count(END) == 2
        assert END not in answer.tokens and BEGIN not in answer.tokens


def test_the_doctor_has_no_objection(folder):
    settings = knobs_of(folder)
    output = call(
        COMMAND, "doctor", "+platform=cpu", *OVERRIDES, f"rpo.cache.path={folder / 'store'}",
        f"data.train_files={folder / 'data' / 'train.parquet'}", f"data.val_files={folder / 'data' / 'val.parquet'}",
        f"data.train_batch_size={settings['QUESTIONS_PER_STEP']}", f"data.max_prompt_length={PROMPT}",
        f"data.max_response_length={RESPONSE}", f"actor_rollout_ref.model.path={folder / 'model'}",
        "actor_rollout_ref.rollout.n=3", f"reward.custom_reward_function.path={REWARD}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2", folder=folder,
    )  # fmt: skip
    assert f"{QUESTIONS} questions" in output, output


def test_six_steps_behind_prefixes(run):
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    for step in run.steps:
        assert step["rpo/groups/prefixed_total"] == 2
        assert 0 < step["rpo/tokens/generated_total"] <= 6 * RESPONSE
        # Trainer and vLLM agree on every token, so padding is told from the end of an answer.
        assert step["training/rollout_probs_diff_max"] < 1e-3
    assert any(step["actor/grad_norm"] > 0 for step in run.steps)


def test_prefixes_may_end_inside_a_character(folder, run):
    records = dumped(run)
    assert len(records) == STEPS * 2 * 3
    inside = 0
    for record in records:
        prefix, output = record["rpo_prefix_text"], record["output"]
        whole = prefix.rstrip("\N{REPLACEMENT CHARACTER}")
        assert output.startswith(whole)
        if whole != prefix:
            inside += 1
            # The policy may go on with the character, or with other bytes.
            assert 0 < len(prefix) - len(whole) <= 3
    assert inside > 0


def test_cached_answers_are_token_ids_that_decode_to_whole_characters(folder, checkpoint):
    tokenizer = tokenizer_of(folder)
    cache, manifest = store.load(checkpoint / "rpo")
    imported, _ = store.load(folder / "store")
    assert (manifest.step, manifest.entries) == (STEPS, QUESTIONS)
    assert {key for key, _ in cache.items()} == {key for key, _ in imported.items()}
    for _, answer in cache.items():
        assert 0 < len(answer.tokens) <= RESPONSE and END not in answer.tokens
        if answer.correct:
            assert "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(answer.tokens)
    shown = call(COMMAND, "cache", "show", checkpoint / "rpo", "--count", QUESTIONS, folder=folder)
    assert "<answer>" in shown and "State the final answer" in shown


def test_rollouts_show(folder, run):
    shown = call(COMMAND, "rollouts", "show", run.folder / "rollouts", "--count", 50, folder=folder)
    assert shown.count("State the final answer") >= STEPS * 2 * 3 and "prefixed" in shown


def test_eval_of_the_checkpoint(folder, checkpoint):
    call(
        COMMAND, "eval", checkpoint, "--data", folder / "data" / "val.parquet", "--out", folder / "eval", "--n", 3,
        "--temperature", 1.0, "--top-p", 1.0, "--max-response-length", 24, "--reward-file", REWARD, "--dtype",
        "float32", "--enforce-eager", folder=folder,
    )  # fmt: skip
    samples = [json.loads(line) for line in (folder / "eval" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(samples) == 2 * 3
    for sample in samples:
        assert 0 < sample["tokens"] <= 24 and "<|im_" not in sample["text"]
        assert sample["truncated"] or sample["tokens"] <= 24


def test_a_store_of_the_models_own_answers(folder):
    call(
        COMMAND, "cache", "build", "--data", folder / "data" / "train.parquet", "--out", folder / "built", "--model",
        folder / "model", "--max-prompt-length", PROMPT, "--max-response-length", 24, "--reward-file", REWARD,
        "--dtype", "float32", folder=folder,
    )  # fmt: skip
    built, _ = store.load(folder / "built")
    imported, _ = store.load(folder / "store")
    # The same questions have the same keys, whichever tool computed them.
    assert {key for key, _ in built.items()} == {key for key, _ in imported.items()}
    for key, answer in built.items():
        assert np.array_equal(answer.question, imported.get(key).question)
        assert len(answer.tokens) <= 24 and END not in answer.tokens


def test_resumed_with_another_cut_and_another_group_size(folder, run, checkpoint):
    before = {key: answer.tokens.tolist() for key, answer in store.load(checkpoint / "rpo")[0].items()}
    resumed = train(
        folder, "resumed", STEPS + 2, "rpo.truncation.max_tokens=5", "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={checkpoint}", GROUP_SIZE="4",
    )  # fmt: skip
    assert [step["step"] for step in resumed.steps] == [STEPS + 1, STEPS + 2]
    first = [record for record in dumped(resumed) if record["step"] == STEPS + 1]
    assert len(first) == 2 * 4
    assert all(1 <= record["rpo_dropped"] <= 5 for record in first)
    lengths = {len(tokens) for tokens in before.values()}
    assert all(record["rpo_prefix_tokens"] + record["rpo_dropped"] in lengths for record in first)
    # A few tokens from the end of a right answer the model is right.
    assert any(record["score"] == 1.0 for record in dumped(resumed))
