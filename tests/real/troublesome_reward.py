"""An asynchronous reward that is no 0 or 1, has keys of its own, and fails on some questions; veRL loads it by path."""


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    index = extra_info["index"]
    if extra_info["split"] == "train" and index == 0:
        raise RuntimeError("no reward for question 0")
    right = "#" in solution_str and solution_str.rpartition("#")[2].strip() == ground_truth
    if extra_info["split"] == "train" and index == 1 and right:
        return float("nan")
    return {"score": 3.0 if right else -2.0, "acc": float(right), "length": len(solution_str)}
