"""`rpo-verl eval` with the real vLLM: killed and continued, from FSDP shards, and what vLLM refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY

from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation.checkpoint import find_checkpoint, merge_shards
from rpo_verl.tools.evaluation.estimators import pass_at_k

COMMAND = Path(sys.executable).parent / "rpo-verl"
ENVIRONMENT = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
QUESTIONS, SAMPLES = 8, 12


def start(folder, data_dir, out, *options, model=TINY / "checkpoint"):
    command = [str(COMMAND), "eval", str(model), "--data", str(data_dir / "val.parquet"), "--out", str(out)]
    command += ["--n", str(SAMPLES), "--temperature", "1.0", "--top-p", "1.0", "--max-response-length", "80"]
    command += ["--reward-file", str(TINY / "reward.py"), "--dtype", "float32", "--enforce-eager"]
    with (folder / "eval.log").open("a") as log:
        return subprocess.Popen(
            [*command, *options], cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )


def read_samples(out):
    """(question, index) → the rest of the record, of the lines that are complete."""
    text = (out / "samples.jsonl").read_text()
    records = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return {(record.pop("question"), record.pop("index")): record for record in records}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data_dir):
    """One evaluation in a single call, and the same one killed after its first samples and called again."""
    folder = tmp_path_factory.mktemp("eval")
    once, twice = folder / "once", folder / "twice"
    assert start(folder, data_dir, once).wait(300) == 0, (folder / "eval.log").read_text()[-4000:]
    process = start(folder, data_dir, twice)
    deadline = time.monotonic() + 300
    while not (twice / "samples.jsonl").exists() or not read_samples(twice):
        assert process.poll() is None and time.monotonic() < deadline, (folder / "eval.log").read_text()[-4000:]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_samples(twice)
    assert 0 < len(kept) < QUESTIONS * SAMPLES, "too fast to be interrupted"
    assert not (twice / "results.json").exists()
    assert start(folder, data_dir, twice).wait(300) == 0, (folder / "eval.log").read_text()[-4000:]
    return once, twice, kept


def test_interrupted_and_resumed_is_the_same_as_uninterrupted(evaluated):
    once, twice, kept = evaluated
    samples = read_samples(twice)
    assert samples == read_samples(once)
    assert kept.items() <= samples.items()
    assert (twice / "results.json").read_bytes() == (once / "results.json").read_bytes()


def test_samples_and_results_agree(evaluated):
    samples = read_samples(evaluated[0])
    results = json.loads((evaluated[0] / "results.json").read_text())
    figures = results["sets"]["tiny_reasoner"]
    assert len(samples) == QUESTIONS * SAMPLES == figures["samples"]
    assert figures["questions"] == QUESTIONS == len(figures["correct"])
    for (question, _), record in samples.items():
        assert record["correct"] == (record["score"] == 1.0)
        assert record["truncated"] == (record["tokens"] == 80 and "#" not in record["text"]), record
        # A token is a character here; the end token is counted and has no text.
        assert record["tokens"] == len(record["text"]) + (not record["truncated"])
        assert question in figures["correct"]
    right = [sum(r["correct"] for (asked, _), r in samples.items() if asked == q) for q in figures["correct"]]
    assert list(figures["correct"].values()) == right
    for k, estimate in figures["pass_at_k"].items():
        assert estimate["value"] == pytest.approx(sum(pass_at_k(SAMPLES, c, int(k)) for c in right) / QUESTIONS)
    assert 0.3 < figures["pass_at_k"]["1"]["value"] < 1.0  # 75 % in its README
    assert len({record["text"] for record in samples.values()}) > QUESTIONS  # samples of a question differ


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A checkpoint `global_step_1` of the tiny reasoner as veRL's FSDP2 saves it, of one rank."""
    folder = tmp_path_factory.mktemp("shards") / "global_step_1"
    actor = folder / "actor"
    shutil.copytree(TINY / "checkpoint", actor / "huggingface")
    weights = actor / "huggingface" / "model.safetensors"
    script = f"""
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method="file://{folder}/rendezvous")
mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
state = {{name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in load_file({str(weights)!r}).items()}}
torch.save(state, {str(actor / "model_world_size_1_rank_0.pt")!r})
torch.distributed.destroy_process_group()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    weights.unlink()
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    return folder


def test_fsdp_shards_are_put_together_once(shards, tmp_path):
    import torch
    from safetensors.torch import load_file

    checkpoint = find_checkpoint(str(shards))
    merged = merge_shards(checkpoint, tmp_path, trust_remote_code=False)
    expected = load_file(TINY / "checkpoint" / "model.safetensors")
    found = load_file(merged / "model.safetensors")
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expected.items())
    before = (merged / "model.safetensors").stat().st_mtime_ns
    assert merge_shards(checkpoint, tmp_path, trust_remote_code=False) == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == before
    assert find_checkpoint(str(merged)).sharded is False


class Malice:
    """Unpickled without restriction, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_shard_cannot_run_code(shards, tmp_path):
    import torch

    evil = tmp_path / "global_step_1"
    shutil.copytree(shards, evil)
    torch.save({"weight": Malice(tmp_path / "ran")}, evil / "actor" / "model_world_size_1_rank_0.pt")
    with pytest.raises(CommandError, match=r"cannot put the shards together .*Unsupported") as caught:
        merge_shards(find_checkpoint(str(evil)), tmp_path, trust_remote_code=False)
    assert not (tmp_path / "ran").exists(), caught.value
    assert not (tmp_path / "model").exists()


def test_more_tokens_than_the_model_has_positions_for(data_dir, tmp_path):
    process = start(tmp_path, data_dir, tmp_path / "out", "--max-response-length", "32768")
    assert process.wait(300) == 1
    output = " ".join((tmp_path / "eval.log").read_text().split())
    assert "vLLM does not start for questions of up to 27 tokens and --max-response-length=32768" in output
    assert "Traceback" not in output


GENERATE = """
import json, sys
from vllm import SamplingParams
from rpo_verl.tools.offline.engine import start_vllm, stream_answers

model, options = sys.argv[1], json.loads(sys.argv[2])
engine = start_vllm(model, max_model_len=128, dtype="float32", gpus=1, gpu_memory_utilization=0.5,
                    trust_remote_code=False, seed=0, enforce_eager=True, disable_log_stats=False, **options)
prompts = [[1 + (n * m) % 9 for m in range(20 + n % 7)] for n in range(40)]
own = [SamplingParams(temperature=1.0, seed=n, max_tokens=80, ignore_eos=True) for n in range(len(prompts))]
answers = {answer.position: answer.tokens for answer in stream_answers(engine, prompts, own)}
counts = {metric.name: metric.value for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"}
print("ANSWERS " + json.dumps([[answers[n] for n in range(len(prompts))], counts["vllm:num_preemptions"]]))
"""


def generate(**options):
    """Seeded answers to 40 prompts, and how many requests were put back on the way."""
    command = [sys.executable, "-c", GENERATE, str(TINY / "checkpoint"), json.dumps(options)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("ANSWERS "))
    return json.loads(line.removeprefix("ANSWERS "))


def test_seeded_answers_do_not_depend_on_how_prompts_are_scheduled():
    whole, put_back = generate(max_num_batched_tokens=4096)
    assert put_back == 0
    in_parts, put_back = generate(max_num_batched_tokens=40, block_size=32, num_gpu_blocks_override=24)
    assert put_back > 0
    assert in_parts == whole
    assert len({tuple(answer) for answer in whole}) == len(whole)
