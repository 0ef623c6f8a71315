"""From the records of a suite to its results: one JSON file, and the tables of a page.

Seconds are those of the processor: a run has a core to itself, and what else goes on there does not count.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import (
    difference,
    difference_rows,
    final_accuracy,
    in_points,
    origin,
    overturning,
    same_processor,
    spread,
)
from benchmarks.statistics import paired
from rpo_verl.config import ConfigError
from rpo_verl.tools.evaluation.results import markdown
from rpo_verl.tools.files import write_text

#: Parts of a step, and what they are called in tables.
PARTS = {"generation": "generation", "log-probs": "log-probs", "update": "update", "cache": "plug-in"}
#: Figures of R²PO's head, of its last updates.
HEAD = ("head_kl", "head_entropy_gain")
#: What an arm's name ends with in a sweep.
LR = "-lr"
#: Results of no run.
NOTHING: Mapping[str, Any] = {"machine": {}, "settings": {}, "arms": {}, "runs": {}}


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is published of a run's record."""
    last, steps = record["curve"][-1], record["steps"]
    keys = ("greedy", "pass_at_k", "entropy", "distinct_share", "answer_tokens", "format_errors")
    return {
        "curve": [
            {"step": p["step"], "seconds": round(p["cpu_seconds"], 1), "tokens": p["tokens"], "accuracy": p["accuracy"]}
            for p in record["curve"]
        ],
        **{key: last[key] for key in keys if key in last},
        "response_tokens": steps[-1]["response_tokens"] if steps else None,
        **({"head": head} if (head := {key: steps[-1][key] for key in HEAD if steps and key in steps[-1]}) else {}),
        "generated_tokens": record["generated_tokens"],
        "parts_s": {name: record["cpu_seconds"].get(part, 0.0) for part, name in PARTS.items()},
        "trained_rows": fmean(step["trained_rows"] for step in steps) if steps else 0.0,
        "lr": record["args"]["lr"],
        "commit": record["commit"],
        "policy": record["policy"],
        "processor": record["machine"]["processor"],
    } | ({"broke_down": record["broke_down"]} if "broke_down" in record else {})


def results(
    suite: str,
    order: Sequence[str],
    records: Mapping[str, Mapping[int, Mapping[str, Any]]],
    earlier: Mapping[str, Any] = NOTHING,
) -> dict[str, Any]:
    """The published form of a suite: policy → arm → seed → summary, and policy → arm → options.

    Args:
        suite: its name.
        order: arms as the suite calls them, POLICY-ARM, in the order of its tables.
        records: arm → seed → record.
        earlier: published results to go on from; records of the same runs win.
    """
    machine, settings = earlier["machine"], earlier["settings"]
    runs, arms = (copy.deepcopy(earlier[part]) for part in ("runs", "arms"))
    for name, by_seed in records.items():
        for seed, record in by_seed.items():
            args = record["args"]
            policy, arm = args["model"], name.removeprefix(f"{args['model']}-")
            runs.setdefault(policy, {}).setdefault(arm, {})[str(seed)] = summary(record)
            arms.setdefault(policy, {})[arm] = {key: value for key, value in args.items() if key != "seed"}
            machine = {key: value for key, value in record["machine"].items() if key != "processor"}
            settings = {
                "problem_steps": args["problem_steps"], "questions": args["questions"], "batch": args["batch"],
                "eval_questions": args["eval_questions"],
            }  # fmt: skip
    for policy, of in runs.items():
        ordered = sorted(of, key=lambda arm: order.index(f"{policy}-{arm}"))
        runs[policy] = {arm: {seed: of[arm][seed] for seed in sorted(of[arm], key=int)} for arm in ordered}
    return {"suite": suite, "machine": machine, "settings": settings, "arms": arms, "runs": runs}


def of_policy(found: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """The runs that begin with a policy, as the tables of `benchmarks.results` take them."""
    return {"runs": found["runs"][policy], "arms": {}}


def cost_rows(found: Mapping[str, Any], policy: str) -> list[list[str]]:
    """Table of what arms cost and what they leave behind, one per row, head first: means over seeds.

    Tokens and seconds of the processor are shares of the first arm's. A run on another processor than the first arm's
    shows no seconds.
    """
    runs = found["runs"][policy]
    first = list(next(iter(runs.values())).values())
    tokens = fmean(run["generated_tokens"] for run in first)
    whole = fmean(map(seconds, first))

    def timed(of: Callable[[Mapping[str, Any]], float]) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda run: of(run) if same_processor(run, first[0]) else None

    columns: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], str]] = {
        "tokens": (lambda run: run["generated_tokens"] / tokens, "{:.0%}"),
        "time": (timed(lambda run: seconds(run) / whole), "{:.0%}"),
        **{f"{name}, s": (timed(lambda run, name=name: run["parts_s"][name]), "{:.1f}") for name in PARTS.values()},
        "rows in the update": (lambda run: run["trained_rows"], "{:.1f}"),
        "greedy": (lambda run: run.get("greedy"), "{:.3f}"),
        "pass@8": (lambda run: run.get("pass_at_k", {}).get("8"), "{:.3f}"),
        "pass@32": (_pass_at_32, "{:.3f}"),
        "entropy": (_entropy, "{:.4f}"),
    }
    rows = [["arm", *columns]]
    for arm, by_seed in runs.items():
        rows.append([arm, *(_mean(list(by_seed.values()), *column) for column in columns.values())])
    return rows


def end_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Table of what arms leave behind on every policy, one per row, head first: means over the seeds of the first arm.

    `KL(head)` and `entropy gain` are those of R²PO's head against the policy, nats a token, at its last updates.
    """
    columns: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], str]] = {
        "at the end": (final_accuracy, "{:.3f}"),
        "greedy": (lambda run: run.get("greedy"), "{:.3f}"),
        **{f"pass@{k}": (lambda run, k=k: run.get("pass_at_k", {}).get(k), "{:.3f}") for k in ("1", "8", "32")},
        "distinct answers": (_distinct, "{:.2f}"),
        "entropy": (_entropy, "{:.4f}"),
        "format errors": (lambda run: run.get("format_errors"), "{:.2%}"),
        "answer, tokens": (lambda run: run.get("answer_tokens"), "{:.1f}"),
        "KL(head)": (lambda run: run.get("head", {}).get("head_kl"), "{:.4f}"),
        "entropy gain": (lambda run: run.get("head", {}).get("head_entropy_gain"), "{:+.4f}"),
    }
    rows = [["policy", "arm", "seeds", f"against {_first(found)}, points", *columns]]
    for policy, runs in found["runs"].items():
        baseline = next(iter(runs))
        for arm, by_seed in runs.items():
            shared = [run for seed, run in by_seed.items() if seed in runs[baseline]]
            points = differences_in_points({"runs": runs}, arm) if arm != baseline else ""
            cells = (_mean(shared, of, form) for of, form in columns.values())
            rows.append([policy, arm, str(len(shared)), points, *cells])
    return rows


def _first(found: Mapping[str, Any]) -> str:
    return next(iter(next(iter(found["runs"].values()))))


def policy_rows(found: Mapping[str, Any], arms: Sequence[str]) -> list[list[str]]:
    """Table of some arms on every policy, against the first arm there, head first: means over seeds.

    Tokens and seconds of the processor are shares of the first arm's on the same seeds, those of the same processor
    where it is about seconds.
    """
    of_ends = {
        "pass@32": (_pass_at_32, "{:.3f}"), "entropy": (_entropy, "{:.4f}"), "distinct answers": (_distinct, "{:.2f}")
    }  # fmt: skip
    rows = [["policy", "arm", "seeds", "at the end", "against grpo, points", "tokens", "time", *of_ends]]
    for policy, runs in found["runs"].items():
        baseline = next(iter(runs))
        for arm in (baseline, *(arm for arm in arms if arm in runs)):
            shared = [(runs[arm][seed], first) for seed, first in runs[baseline].items() if seed in runs[arm]]
            own = [run for run, _ in shared]
            points = differences_in_points({"runs": runs}, arm) if arm != baseline else ""
            timed = [pair for pair in shared if same_processor(*pair)]
            shares = [_share(shared, _tokens), _share(timed, seconds)]
            left = [_mean(own, of, form) for of, form in of_ends.values()]
            end = f"{fmean(map(final_accuracy, own)):.3f}"
            rows.append([policy, arm, str(len(own)), end, points, *shares, *left])
    return rows


def _share(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], of: Callable[[Any], float]) -> str:
    """The sum of the own ones' figures as a share of the others'; a dash without any."""
    return f"{sum(of(own) for own, _ in pairs) / sum(of(other) for _, other in pairs):.0%}" if pairs else "–"


def differences_in_points(results: Mapping[str, Any], arm: str) -> str:
    """How far an arm ends from the first one, with its interval."""
    return difference(paired(in_points(results, lambda _, run: final_accuracy(run), arm)))


def _tokens(run: Mapping[str, Any]) -> float:
    return run["generated_tokens"]


def _pass_at_32(run: Mapping[str, Any]) -> float | None:
    return run.get("pass_at_k", {}).get("32")


def _entropy(run: Mapping[str, Any]) -> float | None:
    return run.get("entropy")


def _distinct(run: Mapping[str, Any]) -> float | None:
    return run.get("distinct_share")


def _mean(runs: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float | None], form: str) -> str:
    """The mean over the runs that have the value, or a dash."""
    known = [value for run in runs if (value := of(run)) is not None]
    return form.format(fmean(known)) if known else "–"


def seconds(run: Mapping[str, Any]) -> float:
    """Seconds of the processor that a run took, without evaluations."""
    return sum(run["parts_s"].values())


def sweeps(found: Mapping[str, Any]) -> list[list[str]]:
    """The tables of `sweep_rows` of all policies as one."""
    tables = {policy: sweep_rows(found, policy) for policy in found["runs"]}
    rates = sorted({lr for (_, *head), *_ in tables.values() for lr in head}, key=float)
    rows = [["policy", "family", *rates]]
    for policy, ((_, *head), *families) in tables.items():
        for family, *cells in families:
            known = dict(zip(head, cells, strict=True))
            rows.append([policy, family, *(known.get(lr, "–") for lr in rates)])
    return rows


def sweep_rows(found: Mapping[str, Any], policy: str) -> list[list[str]]:
    """Table of final accuracies, a family of arms per row and a learning rate per column, head first."""
    cells: dict[str, dict[str, str]] = {}
    for arm, by_seed in found["runs"][policy].items():
        family, _, lr = arm.rpartition(LR)
        text = spread([final_accuracy(run) for run in by_seed.values()], "{:.3f}")
        broken = sum("broke_down" in run for run in by_seed.values())
        cells.setdefault(family, {})[lr] = f"{text}, {broken} broke down" if broken else text
    rates = list(dict.fromkeys(lr for row in cells.values() for lr in row))
    return [["family", *rates], *([family, *(row.get(lr, "–") for lr in rates)] for family, row in cells.items())]


def sentences(found: Mapping[str, Any], policy: str) -> str:
    """What would overturn the difference of each arm from the first, a line each."""
    return "".join(f"- {sentence}\n" for sentence in overturning(of_policy(found, policy)))


def provenance(found: Mapping[str, Any]) -> str:
    """One sentence: command, length, machine, versions, commits."""
    settings = found["settings"]
    runs = [run for arms in found["runs"].values() for by_seed in arms.values() for run in by_seed.values()]
    return (
        f"`python -m benchmarks.lab --suite {found['suite']}`: problems of {settings['problem_steps']} operations, "
        f"{settings['questions']} questions, {settings['batch']} a step, exact accuracy on "
        f"{settings['eval_questions']:,} held-out questions; {origin(found['machine'], runs)}"
    )


def page(found: Mapping[str, Any]) -> str:
    """All tables as Markdown, and where they come from."""
    parts = []
    for policy in found["runs"]:
        parts.append(f"Policy `{policy}`:\n")
        if any(LR in arm for arm in found["runs"][policy]):
            parts.append(markdown(sweep_rows(found, policy)))
            continue
        parts += [markdown(difference_rows(of_policy(found, policy))), markdown(cost_rows(found, policy))]
        parts.append(sentences(found, policy))
    return "\n".join([*parts, provenance(found)]) + "\n"


def read(path: Path, suite: str) -> dict[str, Any]:
    """Published results of a suite, to go on from.

    Raises:
        ConfigError: if they are of another suite, or there is no such file.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--continue-from={path}: {error}") from error
    if not isinstance(found, dict) or found.get("suite") != suite or "arms" not in found:
        raise ConfigError(f"--continue-from={path}: no results of the suite {suite}")
    return found


def write(found: Mapping[str, Any], out: Path) -> None:
    """Write results.json and results.md to the folder of a suite."""
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "results.md", page(found))
