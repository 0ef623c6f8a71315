"""Which places of a micro-batch were generated, in veRL's two layouts, held against a loop over single tokens."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from rpo_verl.r2po.hooks import engine
from rpo_verl.r2po.hooks.engine import ADVANTAGES, generated_tokens
from rpo_verl.r2po.objective import Tokens

HIDDEN, VOCABULARY = 3, 5
#: (prompt, response mask) of rows: a prefix that is masked, a row that only fills up, a tool's tokens in between.
ROWS = ((3, [0, 0, 1, 1]), (2, [1, 1, 1]), (4, [0, 0]), (1, [1, 0, 0, 1, 1]))


def micro_batch(rows):
    rng = np.random.default_rng(0)
    columns = {"input_ids": [], "prompts": [], "response_mask": [], "rollout_log_probs": [], ADVANTAGES: []}
    for prompt, mask in rows:
        ids = torch.tensor(rng.integers(0, 100, prompt + len(mask)))
        columns["input_ids"].append(ids)
        columns["prompts"].append(ids[:prompt])
        columns["response_mask"].append(torch.tensor(mask))
        columns["rollout_log_probs"].append(torch.tensor(rng.standard_normal(len(mask))))
        columns[ADVANTAGES].append(torch.tensor(rng.standard_normal(len(mask)), dtype=torch.float32))
    nested = {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()}
    return TensorDict(nested, batch_size=len(rows)), columns


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:3]])
def test_every_generated_token_where_it_was_predicted(monkeypatch, rows, packed):
    monkeypatch.setattr(engine, "CHUNK", 3)
    batch, columns = micro_batch(rows)
    lengths = [len(ids) for ids in columns["input_ids"]]
    longest = max(lengths)
    # The hidden state of a place says which place it is: row and position.
    by_row = [torch.tensor([[row, place, 0.0] for place in range(length)]) for row, length in enumerate(lengths)]
    padded = torch.stack([torch.cat([h, torch.full((longest - len(h), HIDDEN), -1.0)]) for h in by_row])
    hidden = torch.cat(by_row)[None] if packed else padded
    parts = list(generated_tokens(hidden, hidden @ torch.ones(HIDDEN, VOCABULARY), batch))
    if rows == ROWS[2:3]:
        assert not parts
        return
    assert max(map(len, parts)) <= 3
    names = ("hidden", "logits", "labels", "advantages", "old_log_probs")
    found = Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    expected = [
        (row, prompt + i - 1, columns["input_ids"][row][prompt + i].item(), columns[ADVANTAGES][row][i].item(),
         columns["rollout_log_probs"][row][i].item())
        for row, (prompt, mask) in enumerate(rows)
        for i, generated in enumerate(mask)
        if generated
    ]  # fmt: skip
    assert len(found) == len(expected) == sum(sum(mask) for _, mask in rows)
    for i, (row, place, label, advantage, log_prob) in enumerate(expected):
        assert found.hidden[i].tolist() == [row, place, 0]
        assert found.logits[i].tolist() == [row + place] * VOCABULARY
        assert found.labels[i].item() == label
        assert found.advantages[i].item() == pytest.approx(advantage)
        assert found.old_log_probs[i].item() == pytest.approx(log_prob)
