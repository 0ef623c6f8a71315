"""OlympiadBench: its 674 English, text-only, open-ended competition questions in mathematics (arXiv 2402.14008).

Published as a split named train, with a list of answers, in dollar signs, to each question.
"""

from prepare import DataSet, Split, main

OLYMPIADBENCH = DataSet(
    name="OlympiadBench",
    hub_id="Hothan/OlympiadBench",
    config="OE_TO_maths_en_COMP",
    revision="91184b52131e7fc9455fef848035173aea8cc01a",
    splits={"test": Split("train", 674)},
    columns={"question": str, "final_answer": [str]},
    problem=lambda row: (row["question"], ", ".join(filter(None, row["final_answer"]))),
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(OLYMPIADBENCH)
