"""The tiny reasoner's reward, which also writes down what it was shown; veRL loads this file by its path."""

import json
import os


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    answer = solution_str.rpartition("#")[2].strip()
    score = float("#" in solution_str and answer == ground_truth)
    record = {"response": solution_str, "score": score, "split": extra_info["split"]}
    record["prefix_tokens"] = extra_info.get("rpo_prefix_tokens")
    with open(os.environ["RECORD_FILE"], "a") as stream:
        stream.write(json.dumps(record) + "\n")
    return {"score": score, "acc": score, "answer": answer}
