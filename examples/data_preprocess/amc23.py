"""AMC of 2023: 40 questions, reworded so that each answer is an integer (the source holds them as 27.0)."""

from prepare import DataSet, Split, main, number

AMC23 = DataSet(
    name="AMC23",
    hub_id="math-ai/amc23",
    revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
    splits={"test": Split("test", 40)},
    columns={"question": str, "answer": str | int | float},
    problem=lambda row: (row["question"], number(row["answer"])),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(AMC23)
