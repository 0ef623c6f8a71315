"""What results say in README and docs: each block stands behind a comment with its name, `<!-- results: demo -->`.

`make results` writes all of them, and the bench's curves, anew from docs/results, whose files are what the commands
wrote, as it came; a test holds the pages to it.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_results
import contamination
import summary
import tables

from rpo_verl.tools.evaluation.compare import comparison_rows
from rpo_verl.tools.evaluation.summary import markdown

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "examples" / "tiny_reasoner"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), TINY / "README.md")
#: A marker, and the table or paragraph behind it.
PLACE = re.compile(r"<!-- results: (?P<name>\S+) -->\n\n(?P<block>(?:.+\n)*)")
#: Arm → the call that made it and its name then, when answers were dropped after two failures by default.
CONTAMINATED = {
    "all right, `max_failures=2`": ("contamination", "clean"),
    "all right": ("contamination-one-failure", "clean-1"),
    "all wrong": ("contamination", "wrong100-1"),
    "all wrong, `max_failures=2`": ("contamination", "wrong100"),
    "all wrong, no control": ("contamination", "wrong100-off"),
    "half wrong, `max_failures=2`": ("contamination", "wrong50"),
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
    "ablations-full": "How many rollouts are full, by step and by group",
    "ablations-sizes": "Size of groups and batches",
}


def result(name: str) -> Any:
    """What a command wrote."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def pass_at_k_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Head first: pass@k of the checkpoints and their differences."""
    return comparison_rows(found["evaluations"], found["differences"], found["baseline"])


def pretrained_rows() -> list[list[str]]:
    """Head first: how often the tiny reasoner's checkpoint is right, by the end of its own log."""
    levels = json.loads((TINY / "checkpoint" / "pretrain_log.jsonl").read_text().splitlines()[-1])["levels"]
    rows = [["difficulty", "problems", "sampled, temperature 1.0", "greedy"]]
    for level, found in levels.items():
        rows.append([level, f"{found['problems']:,}", f"{found['sampled']:.1%}", f"{found['greedy']:.1%}"])
    return rows


#: Name → what is to stand there.
BLOCKS: dict[str, Callable[[], str]] = {
    "tiny-reasoner": lambda: markdown(pretrained_rows()),
    "demo": lambda: markdown(summary.rows(result("demo"), summary.HEADLINES)),
    "demo-dapo": lambda: markdown(summary.rows(result("demo-dapo"), summary.HEADLINES)),
    "pass-at-k": lambda: markdown(pass_at_k_rows(result("pass-at-k"))),
    "bench": lambda: markdown(bench_results.accuracy_rows(result("bench-main"))),
    "bench-headlines": lambda: markdown(bench_results.headline_rows(result("bench-main"))),
    "bench-time": lambda: markdown(bench_results.time_rows(result("bench-main"))),
    "bench-waiting": lambda: bench_results.waiting(result("bench-main")) + "\n",
    "bench-source": lambda: bench_results.provenance(result("bench-main")) + "\n",
    "cuts": lambda: markdown(bench_results.accuracy_rows(result("bench-cuts"))),
    "cuts-source": lambda: bench_results.provenance(result("bench-cuts")) + "\n",
    "talkative": lambda: markdown(bench_results.accuracy_rows(result("bench-talkative"))),
    "talkative-source": lambda: bench_results.provenance(result("bench-talkative")) + "\n",
    **{
        block: lambda question=question: markdown(bench_results.question_rows(result("bench-ablations"), question))
        for block, question in ABLATIONS.items()
    },
    **{
        f"ablations-grid-{name.split(',')[0].split()[0]}": lambda shown=shown: markdown(
            bench_results.grid_rows(result("bench-ablations"), *shown)
        )
        for name, shown in bench_results.GRIDS.items()
    },
    "ablations-source": lambda: bench_results.provenance(result("bench-ablations")) + "\n",
    "contamination": lambda: markdown(
        contamination.rows({row: result(call)[arm] for row, (call, arm) in CONTAMINATED.items()})
    ),
    "cache": lambda: markdown(tables.cache_rows(result("cache"))),
    "shared-prefix": lambda: markdown(tables.shared_prefix_rows(result("shared-prefix"))),
    "overhead": lambda: markdown(tables.overhead_rows(result("overhead"))),
}


def filled(page: str) -> str:
    """The page with every block made anew."""
    return PLACE.sub(lambda place: f"<!-- results: {place['name']} -->\n\n{BLOCKS[place['name']]()}", page)


def main() -> None:
    """Command line entry."""
    for path in PAGES:
        page = path.read_text()
        if filled(page) != page:
            path.write_text(filled(page))
            print(f"written: {path.relative_to(ROOT)}")
    for suite, plot in (("main", "bench"), ("cuts", "cuts"), ("talkative", "talkative")):
        bench_results.plot_curves(result(f"bench-{suite}"), ROOT / "docs" / f"{plot}.png")


if __name__ == "__main__":
    main()
