"""pass@k of the tiny reasoner before training, after GRPO, and after GRPO with RPO: table, curves and JSON.

    python examples/tiny_reasoner/pass_at_k.py [--steps N] [--samples N] [--questions N] [hydra overrides …]

Training is that of demo.py; the three checkpoints answer the same held-out questions, by full rollouts, through
`rpo-verl eval`. Called again with the same settings it goes on where it was interrupted. The figures are in
runs/pass-at-k: compare.json, compare.md and pass_at_k.png, and everything that was sampled below it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from demo import ARMS, HERE, train, write_data

COMMAND = Path(sys.executable).parent / "rpo-verl"
# After the last step only, and as a Hugging Face folder only: nothing goes on from here.
SAVE = ["trainer.save_freq=1000000", "actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]"]
MAX_RESPONSE_LENGTH = 208


def run(*arguments: object) -> None:
    """One call of `rpo-verl` on the CPU.

    Raises:
        SystemExit: if it fails; it has said why.
    """
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | os.environ | {"VERL_PLATFORM": "cpu"}
    status = subprocess.run([str(COMMAND), *map(str, arguments)], env=environment).returncode
    if status != 0:
        raise SystemExit(status)


def evaluate(model: Path, out: Path, data: Path, samples: int, seed: int, max_response_length: int) -> None:
    """Sample from the policy itself, as in training: no top-p, temperature 1."""
    run(
        "eval", model, "--data", data / "val.parquet", "--out", out, "--n", samples, "--seed", seed,
        "--temperature", "1.0", "--top-p", "1.0", "--max-response-length", max_response_length,
        "--reward-file", HERE / "reward.py", "--dtype", "float32", "--enforce-eager",
    )  # fmt: skip


def claim(out: Path, settings: dict[str, object]) -> None:
    """Make sure that what is in `out` already was made with these settings.

    Raises:
        SystemExit: if it was not.
    """
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(
            f"{out} was made with {path.read_text().strip()}, now it is {json.dumps(settings)}: choose --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings) + "\n")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps of either arm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=192, help="questions to train on")
    parser.add_argument("--questions", type=int, default=128, help="questions to evaluate on, none of them trained on")
    parser.add_argument("--samples", type=int, default=32, help="answers to each of them")
    parser.add_argument("--out", type=Path, default=Path("runs/pass-at-k"))
    args, overrides = parser.parse_known_args()
    if any(override.startswith("--") for override in overrides):
        parser.error(f"unknown options {[o for o in overrides if o.startswith('--')]}")
    args.test_freq = args.steps
    # The number of samples is not among them: rpo-verl eval adds to those that are there.
    names = ("steps", "seed", "train_size", "questions")
    claim(args.out, {name: getattr(args, name) for name in names} | {"overrides": overrides})
    if not (args.out / "data" / "val.parquet").exists():
        write_data(args.out / "data", args.train_size, args.questions, args.seed)

    # From here, because the results name it.
    checkpoints = {"base": Path(os.path.relpath(HERE / "checkpoint"))}
    for arm in ("grpo", "rpo"):
        checkpoints[arm] = args.out / arm / "checkpoints" / f"global_step_{args.steps}"
        if not (checkpoints[arm] / "actor" / "huggingface" / "model.safetensors").exists():
            train(arm, args, [*ARMS["grpo"][arm], *SAVE, *overrides])
    for label, model in checkpoints.items():
        print(f"[{label}] {args.samples} answers to each of {args.questions} questions", flush=True)
        evaluate(model, args.out / "eval" / label, args.out / "data", args.samples, args.seed, MAX_RESPONSE_LENGTH)
    labelled = [f"{label}={args.out / 'eval' / label}" for label in checkpoints]
    run("eval-compare", *labelled, "--out", args.out, "--baseline", "grpo")


if __name__ == "__main__":
    main()
