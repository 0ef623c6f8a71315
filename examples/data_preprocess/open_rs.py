"""open-rs: the 7,000 questions that the RPO paper trains on (arXiv 2503.16219)."""

from prepare import DataSet, Split, main

OPEN_RS = DataSet(
    name="open-rs",
    hub_id="knoveleng/open-rs",
    revision="8de2b2d11162d97b45c7606902eae2bb1ff629b4",
    splits={"train": Split("train", 7000)},
    columns={"problem": str, "answer": str},
    problem=lambda row: (row["problem"], row["answer"]),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(OPEN_RS)
