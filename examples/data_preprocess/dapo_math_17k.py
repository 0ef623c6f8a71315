"""DAPO-Math-17k: about 17,400 distinct questions with integer answers (arXiv 2503.14476).

Its file repeats every question about 100 times, 1,791,700 rows in all; each is kept once, and questions that stand
there with different answers are left out. The questions come wrapped in a prompt that asks for a line "Answer: …";
here they are unwrapped, so that training asks for a box as the evaluation sets do. `--template` takes another prompt,
the data set's own included.
"""

from prepare import DataError, DataSet, Split, main

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def problem(row: dict) -> tuple[str, str]:
    """Question and answer of a row.

    Raises:
        DataError: if the prompt is not one message in the data set's own wrapper.
    """
    messages = row["prompt"]
    content = messages[0]["content"] if len(messages) == 1 else ""
    if not content.startswith(BEFORE) or not content.rstrip().endswith(AFTER):
        raise DataError(f"a prompt is not one message in the wrapper of DAPO-Math-17k: {str(messages)[:300]}")
    return content.rstrip().removeprefix(BEFORE).removesuffix(AFTER), row["reward_model"]["ground_truth"] or ""


DAPO_MATH_17K = DataSet(
    name="DAPO-Math-17k",
    hub_id="BytedTsinghua-SIA/DAPO-Math-17k",
    revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
    splits={"train": Split("train", 1791700)},
    columns={"prompt": [{"role": str, "content": str}], "reward_model": {"ground_truth": str}},
    problem=problem,
    template="{question} Let's think step by step and output the final answer within \\boxed{}.",
)

if __name__ == "__main__":
    main(DAPO_MATH_17K)
