"""Minerva: 272 university questions in science, from the evaluation of Minerva (arXiv 2206.14858).

Answers are LaTeX or numbers such as 4.5e33, which the reward function reads as powers of ten.
"""

from prepare import DataSet, Split, main

MINERVA = DataSet(
    name="Minerva",
    hub_id="math-ai/minervamath",
    revision="ee46ddc498933b1977577953250ca5c66be64f96",
    splits={"test": Split("test", 272)},
    columns={"question": str, "answer": str},
    problem=lambda row: (row["question"], row["answer"]),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(MINERVA)
