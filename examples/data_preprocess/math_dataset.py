"""MATH: competition problems, 7,500 for training and 5,000 for testing (arXiv 2103.03874).

The answer is the last box of the worked solution. MATH-500 (math500.py) is a part of the test split.
"""

from prepare import DataSet, Split, main

from rpo_verl.rewards.boxed import last_boxed

MATH = DataSet(
    name="MATH",
    hub_id="DigitalLearningGmbH/MATH-lighteval",
    config="default",
    revision="0530c78699ea5e8eb5530600900e1f328b48acad",
    splits={"train": Split("train", 7500), "test": Split("test", 5000)},
    columns={"problem": str, "solution": str},
    problem=lambda row: (row["problem"], last_boxed(row["solution"]) or ""),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(MATH)
