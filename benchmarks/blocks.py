"""Write the generated blocks of README and docs: each stands behind a comment with its name, `<!-- results: demo -->`.

`make results` writes all of them, and the plots that can be made from docs/results, whose files the commands wrote. A
test holds the pages to it.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import contamination, policies, results, summary, tables
from benchmarks.lab import publish
from benchmarks.lm import results as lm
from benchmarks.tiny import CHECKPOINT, ROOT, TINY
from rpo_verl.tools.evaluation import compare
from rpo_verl.tools.evaluation.results import markdown

RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), TINY / "README.md")
#: A marker, and the table or paragraph behind it.
PLACE = re.compile(r"<!-- results: (?P<name>\S+) -->\n\n(?P<block>(?:.+\n)*)")
#: Row of the table → the file and its arm.
CONTAMINATED = {
    "all right, `max_failures=2`": ("contamination", "clean-2"),
    "all right": ("contamination-one-failure", "clean"),
    "all wrong": ("contamination", "wrong100"),
    "all wrong, `max_failures=2`": ("contamination", "wrong100-2"),
    "all wrong, no control": ("contamination", "wrong100-off"),
    "half wrong, `max_failures=2`": ("contamination", "wrong50-2"),
    "half wrong, no control": ("contamination", "wrong50-off"),
}

#: Block → the question that its arms answer.
ABLATIONS = {
    "ablations-cut": "Where answers are cut (L), and the length-aware reward (alpha)",
    "ablations-diversity": "Diversity without the length-aware reward",
    "ablations-weak": "A policy that is seldom right",
    "ablations-weakest": "A policy too weak to fill the cache with anything right",
    "ablations-ranges": "Other ranges",
    "ablations-greedy": "Which response the cache takes",
    "ablations-cache": "What the cache begins with",
    "ablations-loss": "Prefixes in the loss",
    "ablations-full": "How many rollouts are full",
    "ablations-sizes": "Size of groups and batches",
}


def result(name: str) -> Any:
    """The JSON that a command wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def pass_at_k_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Table of pass@k of the checkpoints and their differences, head first."""
    return compare.comparison_rows(found["evaluations"], found["differences"], found["baseline"])


def pretrained_rows() -> list[list[str]]:
    """Table of the accuracy of the tiny reasoner's checkpoint, from the last line of its own log, head first."""
    levels = json.loads((CHECKPOINT / "pretrain_log.jsonl").read_text().splitlines()[-1])["levels"]
    rows = [["difficulty", "problems", "sampled, temperature 1.0", "greedy"]]
    for level, found in levels.items():
        rows.append([level, f"{found['problems']:,}", f"{found['sampled']:.1%}", f"{found['greedy']:.1%}"])
    return rows


def pretrained_size() -> str:
    """One sentence: the size of the tiny reasoner's checkpoint."""
    parameters = json.loads((CHECKPOINT / "pretrain_log.jsonl").read_text().splitlines()[0])["parameters"]
    tokens = json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"]
    size = (CHECKPOINT / "model.safetensors").stat().st_size / 1e6
    return (
        f"{parameters:,} parameters (float32, tied embeddings), {tokens} tokens of vocabulary, {size:.1f} MB on disk."
    )


def demo() -> dict[str, Any]:
    """What a call of the demo writes: the first seed of the biased suite."""
    found = result("bench-biased")
    return found | {"runs": {arm: {"1": found["runs"][arm]["1"]} for arm in ("grpo", "rpo")}}


def lab_blocks(suite: str) -> dict[str, Callable[[], str]]:
    """Name → table or sentence, of a suite of the fast lane on the biased policy."""
    name = f"lab-{suite}"
    return {
        name: lambda: markdown(results.difference_rows(publish.of_policy(result(name), "biased"))),
        f"{name}-costs": lambda: markdown(publish.cost_rows(result(name), "biased")),
        f"{name}-overturned": lambda: publish.sentences(result(name), "biased"),
        f"{name}-source": lambda: publish.provenance(result(name)) + "\n",
    }


def frontier() -> dict[str, Any]:
    """Runs of every arm of the fast lane that begins with the biased policy, GRPO first."""
    return {
        arm: by_seed
        for suite in ("reuse", "competitors")
        for arm, by_seed in result(f"lab-{suite}")["runs"]["biased"].items()
    }


#: Name → its table or sentence.
BLOCKS: dict[str, Callable[[], str]] = {
    "tiny-reasoner-size": lambda: pretrained_size() + "\n",
    "tiny-reasoner": lambda: markdown(pretrained_rows()),
    "demo": lambda: markdown(summary.rows(demo())),
    "pass-at-k": lambda: markdown(pass_at_k_rows(result("pass-at-k"))),
    "biased-headlines": lambda: markdown(summary.rows(result("bench-biased"))),
    "biased": lambda: markdown(results.difference_rows(result("bench-biased"))),
    "biased-overturned": lambda: "".join(f"- {text}\n" for text in results.overturning(result("bench-biased"))),
    "biased-ends": lambda: markdown(results.end_rows(result("bench-biased"))),
    "biased-time": lambda: markdown(results.time_rows(result("bench-biased"))),
    "biased-source": lambda: results.provenance(result("bench-biased")) + "\n",
    "cuts": lambda: markdown(results.accuracy_rows(result("bench-cuts"))),
    "cuts-source": lambda: results.provenance(result("bench-cuts")) + "\n",
    "talkative-cuts": lambda: markdown(results.accuracy_rows(result("bench-talkative"))),
    "talkative-cuts-source": lambda: results.provenance(result("bench-talkative")) + "\n",
    **{
        block: lambda question=question: markdown(results.question_rows(result("bench-ablations"), question))
        for block, question in ABLATIONS.items()
    },
    **{
        f"ablations-grid-{name.split(',')[0].split()[0]}": lambda shown=shown: markdown(
            results.grid_rows(result("bench-ablations"), *shown)
        )
        for name, shown in results.GRIDS.items()
    },
    "ablations-source": lambda: results.provenance(result("bench-ablations")) + "\n",
    "policies": lambda: markdown(policies.rows(result("policies"))),
    "lab-lr": lambda: markdown(publish.sweeps(result("lab-lr"))),
    "lab-lr-source": lambda: publish.provenance(result("lab-lr")) + "\n",
    "lab-policies": lambda: markdown(publish.policy_rows(result("lab-reuse"), ("rpo", "rpo-imitate", "raft"))),
    **lab_blocks("reuse"),
    **lab_blocks("competitors"),
    "lab-r2po": lambda: markdown(publish.end_rows(result("lab-r2po"))),
    **{
        f"lab-r2po-overturned-{policy}": lambda policy=policy: publish.sentences(result("lab-r2po"), policy)
        for policy in ("biased", "talkative")
    },
    "lab-r2po-source": lambda: publish.provenance(result("lab-r2po")) + "\n",
    "lm": lambda: markdown(lm.rows(result("lm")["runs"])),
    "lm-end": lambda: markdown(lm.ends(result("lm"))),
    "lm-time": lambda: markdown(lm.parts(result("lm"))),
    "lm-source": lambda: lm.provenance(result("lm")) + "\n",
    "contamination": lambda: markdown(
        contamination.rows({row: result(call)[arm] for row, (call, arm) in CONTAMINATED.items()})
    ),
    "cache": lambda: markdown(tables.cache_rows(result("cache"))),
    "shared-prefix": lambda: markdown(tables.shared_prefix_rows(result("shared-prefix"))),
    "overhead": lambda: markdown(tables.overhead_rows(result("overhead"))),
}


def filled(page: str) -> str:
    """The page with every block generated again."""
    return PLACE.sub(lambda place: f"<!-- results: {place['name']} -->\n\n{BLOCKS[place['name']]()}", page)


def main() -> None:
    """Command line entry."""
    for path in PAGES:
        page = path.read_text()
        if filled(page) != page:
            path.write_text(filled(page))
            print(f"written: {path.relative_to(ROOT)}")
    for suite, plot in (("biased", "biased"), ("cuts", "cuts"), ("talkative", "talkative")):
        results.plot_curves(result(f"bench-{suite}"), ROOT / "docs" / f"{plot}.png")
    results.plot_curves(demo(), ROOT / "docs" / "demo.png", summary.AXES)
    results.plot_frontier(frontier(), ROOT / "docs" / "frontier.png")
    compare.plot(result("pass-at-k")["evaluations"], ROOT / "docs" / "pass_at_k.png")


if __name__ == "__main__":
    main()
