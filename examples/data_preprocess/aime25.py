"""AIME of 2025, both exams: 30 questions whose answers are integers from 0 to 999."""

from prepare import DataSet, Split, main, number

AIME25 = DataSet(
    name="AIME25",
    hub_id="math-ai/aime25",
    revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
    splits={"test": Split("test", 30)},
    columns={"problem": str, "answer": str | int | float},
    problem=lambda row: (row["problem"], number(row["answer"])),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(AIME25)
