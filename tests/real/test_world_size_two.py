"""Two logical devices: FSDP2 shards over gloo, two vLLM replicas, two rollout workers; editable install.

One of the runs begins with a store by `rpo-verl cache build`, which was interrupted and continued.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, WITHOUT_CREDIT, run_recipe

from rpo_verl.rpo import store

#: A group of full rollouts (some 450 tokens where its question is there once) has to be cut, one behind a prefix not.
SHARED = (
    "lean.share_prefix=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
)


COMMAND = Path(sys.executable).parent / "rpo-verl"


def start_build(folder: Path, data_dir: Path, *options: str) -> subprocess.Popen:
    """Begin to build a store of the training questions' answers."""
    command = [
        str(COMMAND),
        "cache",
        "build",
        "--data",
        str(data_dir / "train.parquet"),
        "--out",
        str(folder / "store"),
    ]
    command += ["--model", str(TINY / "checkpoint"), "--max-prompt-length", "72", "--max-response-length", "208"]
    command += ["--reward-file", str(TINY / "reward.py"), "--dtype", "float32", "--batch-size", "3"]
    environment = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (folder / "build.log").open("a") as log:
        return subprocess.Popen(
            [*command, *options], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory, data_dir):
    """A store of 8 answers; the first build was killed after its first batch of 3."""
    folder = tmp_path_factory.mktemp("build")
    process = start_build(folder, data_dir)
    first = folder / "store.partial" / "part-000000003" / "manifest.json"
    deadline = time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "build.log").read_text()[-4000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    parts = {path.name: (path / "manifest.json").read_bytes() for path in first.parent.parent.glob("part-*")}
    assert not (folder / "store").exists(), "the build was too fast to be interrupted"
    refused = start_build(folder, data_dir, "--temperature", "0.5")
    assert refused.wait(300) == 1
    assert "temperature: 1.0 then, 0.5 now" in " ".join((folder / "build.log").read_text().split())
    assert {p.name: (p / "manifest.json").read_bytes() for p in first.parent.parent.glob("part-*")} == parts
    finished = start_build(folder, data_dir)
    assert finished.wait(300) == 0, (folder / "build.log").read_text()[-4000:]
    return folder


def test_one_answer_per_question_without_the_end_token(built):
    cache, manifest = store.load(built / "store")
    assert (manifest.entries, manifest.step) == (8, 0)
    assert not (built / "store.partial").exists()
    for _, answer in cache.items():
        assert 0 < len(answer.tokens) < 208
        assert int(answer.tokens.max()) < 256  # characters only
        assert answer.reward == float(answer.correct)


def test_a_built_answer_has_the_log_probabilities_of_its_tokens(built):
    """So that credit can weigh its prefixes from the first visit on."""
    import torch
    from transformers import AutoModelForCausalLM

    cache, manifest = store.load(built / "store")
    assert manifest.temperature == 1.0
    model = AutoModelForCausalLM.from_pretrained(TINY / "checkpoint")
    for _, answer in cache.items():
        ids = torch.tensor([*answer.question, *answer.tokens])[None]
        with torch.no_grad():
            predicted = model(ids).logits[0, len(answer.question) - 1 : -1].float().log_softmax(-1)
        own = predicted[torch.arange(len(answer.tokens)), torch.from_numpy(answer.tokens).long()]
        assert answer.logprobs.tolist() == pytest.approx(own.tolist(), abs=0.01)


@pytest.fixture(scope="module", params=["paper", "enabled"])
def run(request, tmp_path_factory, data_dir, built):
    # With our settings the trainer computes prefixes once a group, in micro-batches of so many tokens, and skips rows;
    # with the paper's it computes every row by itself, so that the loss's count of tokens can be exact.
    # The paper begins with an answer to every question.
    from_store = ("lean.skip_zero_advantage=false", f"rpo.cache.path={built / 'store'}")
    own = (*WITHOUT_CREDIT, "rpo.truncation.max_fraction=1", *SHARED)
    if request.param == "paper":
        own = ("+rpo=paper", *from_store)
    folder = tmp_path_factory.mktemp("two")
    run = run_recipe(
        folder,
        *own,
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "data.shuffle=false",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        STEPS="4",
        DATA_DIR=str(data_dir),
        OMP_NUM_THREADS="1",
        MICRO_BATCH_SIZE="2",
        PYTHONPATH=str(Path(__file__).parent),
        VERL_USE_EXTERNAL_MODULES="recording_loss",
        LOSS_TOKENS_FILE=str(folder / "loss_tokens.txt"),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


def test_both_devices_train_and_roll_out(run):
    assert len(run.steps) == 4
    assert any(step["actor/grad_norm"] > 0 for step in run.steps)
    # Two data-parallel ranks share every batch of 16 sequences.
    assert all(step["global_seqlen/max"] < step["perf/total_num_tokens"] for step in run.steps)


def test_prefixes_are_shared_where_that_is_asked_for(run, request):
    shares = [step["lean/update/computed_share"] for step in run.steps if "lean/update/computed_share" in step]
    if request.node.callspec.params["run"] == "enabled":
        # The least there can be is a quarter, for groups of four that are whole and have hardly anything of their own.
        assert len(shares) == len(run.steps)
        assert all(0.25 <= share < 0.95 for share in shares)
    else:
        assert not shares


def test_weights_reach_both_replicas(run):
    # And the trainer's log-probabilities are right, packed rows or not.
    assert all(step["training/rollout_probs_diff_max"] < 1e-3 for step in run.steps)


def test_prefixes_are_replayed(run, request):
    hits = [step["rpo/groups/prefixed_total"] + step["rpo/groups/refreshed_total"] for step in run.steps]
    if request.node.callspec.params["run"] == "paper":
        # From the store that was built ahead of training, and nothing of it is dropped.
        assert hits == [4, 4, 4, 4]
        assert run.steps[0]["rpo/groups/prefixed_total"] == 4
        assert [step["rpo/cache/entries"] for step in run.steps] == [8, 8, 8, 8]
    else:
        assert hits == [0, 0, 4, 4]
    assert all(step["rpo/tokens/reused_total"] > 0 for step in run.steps[2:])


def test_zero_advantage_rows_are_skipped_and_the_rest_is_balanced(run, request):
    shares = [step["lean/update/rows_share"] for step in run.steps if "lean/update/rows_share" in step]
    assert bool(shares) == (request.node.callspec.params["run"] == "enabled")
    if shares:
        assert min(shares) < 1
        assert any("lean/update_seqlen/balanced_min" in step for step in run.steps)


def test_the_loss_counts_the_prefix_with_the_papers_settings_only(run, request):
    counted = sum(int(tokens) for tokens in (run.folder / "loss_tokens.txt").read_text().split())
    generated, reused = (
        sum(step[f"rpo/tokens/{kind}_total"] for step in run.steps) for kind in ("generated", "reused")
    )
    assert reused > 0
    if request.node.callspec.params["run"] == "paper":
        assert counted == generated + reused
    else:
        # Zero-advantage rows are skipped.
        assert 0 < counted <= generated
        assert (counted == generated) == all(step["lean/update/rows_share"] == 1 for step in run.steps)
