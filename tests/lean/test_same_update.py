"""Lean makes the update that veRL makes: veRL's engine and loss on the same batch, zero-advantage rows in it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.config import FSDPActorConfig
from verl.workers.engine.fsdp import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

from rpo_verl.lean import signal
from rpo_verl.lean.engine import SHARE_PREFIX, SharedPrefixEngine
from rpo_verl.upstream.engines import extended

GROUPS, MEMBERS, PROMPT, PREFIX = 6, 4, 9, 14
#: Groups whose members all earned the same.
ZERO = (0, 2, 3, 5)


class Batch(SimpleNamespace):
    """What lean needs of a batch's metadata."""

    def __len__(self):
        return len(self.keys)

    def select_keys(self, keys):
        return Batch(keys=list(keys), tags=[self.tags[self.keys.index(key)] for key in keys], partition_id="train")


@pytest.fixture
def queue(monkeypatch):
    """Rows by key. Behind a prefix most groups are all right, which is where rows are skipped."""
    rng, rows = np.random.default_rng(0), {}
    for group in range(GROUPS):
        head = rng.integers(1, 256, PROMPT + PREFIX)
        for member in range(MEMBERS):
            suffix = rng.integers(1, 256, rng.integers(2, 9))
            ids = torch.tensor(np.concatenate([head, suffix]))
            mask = torch.tensor([0] * PREFIX + [1] * len(suffix))
            advantage = 0.0 if group in ZERO else (1.5 if member == 0 else -0.5)
            rows[f"{group}_{member}_0"] = {
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "prompts": ids[:PROMPT],
                "responses": ids[PROMPT:],
                "response_mask": mask,
                "advantages": advantage * mask.float(),
                "old_log_probs": -3.0 + 0.3 * torch.tensor(rng.standard_normal(len(mask)), dtype=torch.float32),
            }

    def write(keys, partition_id, **columns):
        for name, values in columns.items():
            for key, value in zip(keys, values, strict=True):
                rows[key] = rows[key] | {name: value}

    monkeypatch.setattr(signal.queue, "read", lambda keys, _, *names: tuple([rows[k][n] for k in keys] for n in names))
    monkeypatch.setattr(signal.queue, "write", write)
    return rows


def configuration(mini_batches, loss_agg_mode):
    actor = {
        "ppo_mini_batch_size": GROUPS // mini_batches, "ppo_micro_batch_size_per_gpu": 4, "use_dynamic_bsz": False,
        "loss_agg_mode": loss_agg_mode, "use_kl_loss": False, "entropy_coeff": 0, "policy_loss": {},
    }  # fmt: skip
    return OmegaConf.create({"actor_rollout_ref": {"actor": actor, "rollout": {"n": MEMBERS}}, "algorithm": {}})


def update_of(rows, keys, questions, loss_agg_mode, share=False):
    """veRL's loss, mini-batch by mini-batch, and an optimizer step for each.

    Plain gradient descent, because Adam's first steps blow up the rounding of gradients that are nearly zero.
    """
    model = AutoModelForCausalLM.from_pretrained(TINY / "checkpoint", dtype=torch.float32, attn_implementation="sdpa")
    engine = object.__new__(extended(SharedPrefixEngine, FSDPEngineWithLMHead))
    engine.module, engine.pad_to_length = model, 0
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    before = torch.cat([value.detach().flatten() for value in model.parameters()])
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=MEMBERS, ppo_micro_batch_size_per_gpu=4, loss_agg_mode=loss_agg_mode
    )
    size, norms = questions * MEMBERS, []
    for start in range(0, len(keys), size):
        chosen = [rows[key] for key in keys[start : start + size]]
        columns = {
            name: torch.nested.as_nested_tensor([row[name] for row in chosen], layout=torch.jagged)
            for name in chosen[0]
        }
        data = TensorDict(columns, batch_size=len(chosen))
        tokens = int(sum(row["response_mask"].sum() for row in chosen))
        tu.assign_non_tensor(
            data, use_remove_padding=False, pad_mode=DatasetPadMode.NO_PADDING, use_fused_kernels=False,
            temperature=1.0, calculate_entropy=False, dp_size=1, batch_num_tokens=tokens,
            global_batch_size=len(chosen), **{SHARE_PREFIX: share},
        )  # fmt: skip
        inputs, arguments = engine.prepare_model_inputs(data)
        outputs = engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, data, None)
        loss, _ = ppo_loss(config, outputs, data)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
        optimizer.step()
    return norms, torch.cat([value.detach().flatten() for value in model.parameters()]) - before


@pytest.mark.parametrize(
    ("loss_agg_mode", "mini_batches", "share"),
    [
        ("token-mean", 1, False),
        ("token-mean", 3, False),
        ("token-mean", 3, True),
        ("seq-mean-token-mean", 1, True),
        ("seq-mean-token-mean", 3, False),
        ("seq-mean-token-sum", 3, False),
    ],
)
def test_same_batch_same_update(queue, loss_agg_mode, mini_batches, share):
    config, keys = configuration(mini_batches, loss_agg_mode), list(queue)
    batch = Batch(keys=keys, tags=[{"seq_len": len(queue[key]["input_ids"])} for key in keys], partition_id="train")
    whole = GROUPS // mini_batches
    norms, expected = update_of(dict(queue), keys, whole, loss_agg_mode)
    smaller, questions = signal.skip_zero_advantage_rows(batch, config, 1, share, {})
    assert len(smaller) < len(batch)
    assert questions < whole
    lean_norms, found = update_of(queue, smaller.keys, questions, loss_agg_mode, share)
    assert max(norms) > 0
    assert lean_norms == pytest.approx(norms, rel=1e-4)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
