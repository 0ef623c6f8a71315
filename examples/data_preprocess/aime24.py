"""AIME of 2024: 30 questions whose answers are integers from 0 to 999; published as a split named train."""

from prepare import DataSet, Split, main, number

AIME24 = DataSet(
    name="AIME24",
    hub_id="HuggingFaceH4/aime_2024",
    revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    splits={"test": Split("train", 30)},
    columns={"problem": str, "answer": str | int | float},
    problem=lambda row: (row["problem"], number(row["answer"])),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(AIME24)
