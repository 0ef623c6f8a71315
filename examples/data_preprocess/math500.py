"""MATH-500: 500 questions of MATH's test split, with the final answer in a column of its own."""

from prepare import DataSet, Split, main

MATH500 = DataSet(
    name="MATH-500",
    hub_id="HuggingFaceH4/MATH-500",
    revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    splits={"test": Split("test", 500)},
    columns={"problem": str, "answer": str},
    problem=lambda row: (row["problem"], row["answer"]),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(MATH500)
