"""The page of the language bench, which needs none of the bench's packages."""

from benchmarks.lm import results


def run(*accuracies):
    curve = [{"step": 15 * n, "seconds": 60.0 * n, "tokens": 1000 * n, "accuracy": a} for n, a in enumerate(accuracies)]
    return {
        "curve": curve, "generated_tokens": 2000, "generated_tokens_per_sample": 50.0, "train_s": 120.0, "step_s": 4.0,
        "parts_s": {"generation": 3.0, "update": 1.0}, "commit": "abc123", "processor": "some processor",
        "lr": "2e-5",
        "end": {"accuracy": 0.45, "greedy": 0.5, "pass_at_k": {"1": 0.4, "8": 0.6, "32": 0.8}, "entropy": 0.05,
                "distinct_share": 0.5, "format_errors": 0.0, "answer_tokens": 48.0},
    }  # fmt: skip


def test_table_of_the_arms():
    head, grpo, rpo = results.rows({"grpo": {"1": run(0.2, 0.3, 0.4)}, "rpo": {"1": run(0.2, 0.4, 0.5)}})
    assert head[:3] == ["arm", "seeds", "before"]
    assert grpo[1:6] == ["1", "0.200", "0.400", "0.350", "2,000"] and grpo[-2:] == ["2,000", "120"]
    assert rpo[-2:] == ["1,000", "60"]


def test_page():
    settings = {
        "task": "chain_sum", "steps": 45, "test_freq": 15, "questions": 32, "val_questions": 64, "samples": 4,
        "knobs": {"QUESTIONS_PER_STEP": "4", "GROUP_SIZE": "8"},
    }  # fmt: skip
    machine = {"cores": 2, "python": "3.11", "versions": {"verl": "0.9.1"}}
    page = results.page(
        {
            "machine": machine,
            "settings": settings,
            "arms": {"grpo": ["+lean=enabled"]},
            "runs": {"grpo": {"1": run(0.2, 0.4)}},
        }
    )
    assert "| grpo | 4.00 | 3.000 | 1.000 |" in page
    assert "| grpo | 1 |  | 0.450 | 0.500 | 0.400 | 0.600 | 0.800 | 0.50 | 0.0500 | 0.00% | 48.0 | – | – |" in page
    assert "`python -m benchmarks.lm.bench --task chain_sum`: 32 questions, 4 a step with 8 answers each" in page
    assert "45 training steps, learning rates 2e-5 (grpo), validated every 15" in page
    assert page.endswith("; a run a core, 2 cores of some processor, Python 3.11, verl 0.9.1; commit abc123.\n")
