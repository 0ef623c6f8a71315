"""Measure the experience cache: `make bench-cache` prints a table and writes runs/bench/cache.json.

Every size runs in a process of its own, and loading in another, so that the resident memory of one does not hide
in that of the other. Times are medians of five, save and load of one.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from benchmarks.tables import cache_rows, show
from benchmarks.tiny import ROOT
from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo import store
from rpo_verl.rpo.cache import LOGPROB_BYTES, TOKEN_BYTES, CachedAnswer, ExperienceCache
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CreditConfig, RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts, Row
from rpo_verl.rpo.start import NO_LOGPROBS, Start

#: Questions, tokens of each answer, and whether their log-probabilities are kept.
SIZES = (
    (1_000, 4096, False), (10_000, 4096, False), (100_000, 4096, False), (100_000, 4096, True), (1_000_000, 256, False),
)  # fmt: skip
BATCH, GROUP = 1024, 8
TOKENIZER = TokenizerIdentity.of("bench", {"a": 0}, None)
#: Of the size (100,000, 4,096): milliseconds, milliseconds, seconds, seconds, share of the raw bytes.
LIMITS = {"look_up_ms": 20, "update_ms": 50, "save_s": 10, "load_s": 10, "resident_share": 1.2}
REFERENCE = (100_000, 4096)


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return psutil.Process().memory_info().rss


def timed(action, repeats: int) -> float:
    """Median seconds of an action that gets the number of the repetition."""
    seconds = []
    for i in range(repeats):
        started = time.perf_counter()
        action(i)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def questions(entries: int) -> list[tuple[bytes, np.ndarray]]:
    """Distinct questions of one token, so that the answers dominate."""
    ids = np.arange(entries, dtype=np.int32).reshape(-1, 1)
    return [(question_key(question, TOKENIZER.fingerprint), question) for question in ids]


def raw_bytes(tokens: int, with_logprobs: bool) -> int:
    """Bytes of so many token ids, and of their log-probabilities."""
    return tokens * (TOKEN_BYTES + with_logprobs * LOGPROB_BYTES)


def measure(entries: int, tokens: int, with_logprobs: bool, folder: Path) -> dict[str, float]:
    """Fill a cache and time what a training step and a checkpoint do with it."""
    rng, cache = np.random.default_rng(0), ExperienceCache()
    options = RPOConfig(credit=CreditConfig(rule="paid" if with_logprobs else "none"))
    rpo = PartialRollouts(options, 2 * tokens, TOKENIZER, cache=cache)
    logprobs = -rng.random(tokens, dtype=np.float32).astype(np.float16) - 1 if with_logprobs else NO_LOGPROBS
    asked = questions(entries)
    before = resident()
    for key, question in asked:
        ids = rng.integers(0, 150_000, tokens, dtype=np.int32)
        cache.put(key, CachedAnswer(ids, True, 1.0, 0, question, logprobs=logprobs))
    memory = resident() - before
    batches = [[asked[i] for i in rng.integers(0, entries, BATCH)] for _ in range(5)]
    half = tokens // 2
    suffix = rng.integers(0, 150_000, tokens - half, dtype=np.int32)
    shaped = np.linspace(0.5, 1.0, GROUP)

    def group(number: int, key: bytes) -> tuple[Group, Row]:
        """A finished group that started from the first half of its answer, and what its rows hold."""
        answer = cache.get(key)
        start = Start(key, "prefixed", GROUP, tokens, answer.tokens[:half], tokens - half, answer.id, 0)
        lengths = np.full(GROUP, tokens)
        keys = tuple(f"{number}_{member}_0" for member in range(GROUP))
        correct = np.ones(GROUP, dtype=bool)  # so that the chosen response is stored, whichever it is
        finished = Group(start, keys, lengths // 2, lengths, np.zeros(GROUP, int), correct * 1.0, correct, shaped)
        return finished, (answer.question, np.concatenate([answer.tokens[:half], suffix]), logprobs)

    def look_up(i: int) -> None:
        for _, question in batches[i]:
            rpo.plan(question, i + 1, GROUP)

    def update(i: int) -> None:
        counts = rpo.observe(groups[i], i + 1, lambda keys: [rows[i][int(key.split("_")[0])] for key in keys])
        assert counts["stored"] == len(groups[i])
        rpo.end_step(i)

    look_up_s, updates_s, groups, rows = timed(look_up, 5), [], {}, {}
    for i, batch in enumerate(batches):
        # A question that is in a batch twice has one group.
        asked_now = dict.fromkeys(key for key, _ in batch)
        groups[i], rows[i] = zip(*(group(number, key) for number, key in enumerate(asked_now)), strict=True)
        updates_s.append(timed(lambda _, i=i: update(i), 1) * BATCH / len(groups[i]))
    update_s = median(updates_s)
    save_s = timed(lambda i: rpo.save(folder, i), 1)
    return {
        "entries": entries,
        "tokens": tokens,
        "logprobs": with_logprobs,
        "look_up_ms": 1000 * look_up_s,
        "update_ms": 1000 * update_s,
        "save_s": save_s,
        "resident_bytes": memory,
        "accounted_bytes": cache.bytes,
        "resident_share": memory / raw_bytes(entries * tokens, with_logprobs),
        "disk_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def measure_load(folder: Path) -> dict[str, float]:
    """Load a store in this process, which has done nothing else."""
    before, started = resident(), time.perf_counter()
    cache, manifest = store.load(folder, TOKENIZER)
    seconds = time.perf_counter() - started
    share = (resident() - before) / raw_bytes(manifest.tokens, manifest.temperature is not None)
    assert len(cache) == manifest.entries
    return {"load_s": seconds, "resident_share_after_load": share}


def run_in_process(*arguments: str) -> dict[str, float]:
    """Run this module on one size, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cache", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def main() -> None:
    """Command line entry; exit status 1 if the reference size is beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/cache.json"))
    parser.add_argument(
        "--measure", nargs=4, metavar=("ENTRIES", "TOKENS", "LOGPROBS", "FOLDER"), help="one size; used inside"
    )
    parser.add_argument("--load", type=Path, help="load a store; used inside")
    args = parser.parse_args()
    if args.measure:
        entries, tokens, with_logprobs, folder = args.measure
        return print(json.dumps(measure(int(entries), int(tokens), bool(int(with_logprobs)), Path(folder))))
    if args.load:
        return print(json.dumps(measure_load(args.load)))

    results = []
    for entries, tokens, with_logprobs in SIZES:
        print(f"{entries:,} questions of {tokens:,} tokens{' with log-probabilities' * with_logprobs} …", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "rpo"
            result = run_in_process("--measure", str(entries), str(tokens), str(int(with_logprobs)), str(folder))
            results.append(result | run_in_process("--load", str(folder)))
    show(f"{BATCH} questions a step", cache_rows(results))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    limits, beyond = LIMITS | {"resident_share_after_load": LIMITS["resident_share"]}, []
    for found in results:
        if (found["entries"], found["tokens"]) == REFERENCE:
            kept = "with" if found["logprobs"] else "without"
            above = [f"{name} {found[name]:.3g} > {most}" for name, most in limits.items() if found[name] > most]
            beyond += [f"{kept} log-probabilities {text}" for text in above]
    if beyond:
        raise SystemExit(f"beyond the limits: {'; '.join(beyond)}")


if __name__ == "__main__":
    main()
