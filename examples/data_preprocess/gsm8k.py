"""GSM8K: grade-school word problems, 7,473 for training and 1,319 for testing (arXiv 2110.14168)."""

import re

from prepare import DataSet, Split, main


def final_number(solution: str) -> str:
    """The number after the last `####`, without thousands separators and without the words that follow it.

    Where no number stands there, it is the rest of the line; empty if there is no `####`.
    """
    _, mark, rest = solution.rpartition("####")
    if not mark or not rest.strip():
        return ""
    line = rest.strip().splitlines()[0].strip().replace(",", "")
    found = re.match(r"(-?)\s*\\?\$?\s*(-?\d[\d./]*(?:\s*\\?%)?)(?=[\s.]|$)", line)
    return (found[1] + found[2]).rstrip(".") if found else line


GSM8K = DataSet(
    name="GSM8K",
    hub_id="openai/gsm8k",
    config="main",
    revision="740312add88f781978c0658806c59bc2815b9866",
    splits={"train": Split("train", 7473), "test": Split("test", 1319)},
    columns={"question": str, "answer": str},
    problem=lambda row: (row["question"], final_number(row["answer"])),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(GSM8K)
