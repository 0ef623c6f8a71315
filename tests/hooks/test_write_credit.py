"""Credit in veRL's queue: one write at most, after the user's estimator. The queue is a dictionary here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import agg_loss

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.credit import write_credit
from rpo_verl.rpo.options import CreditConfig
from rpo_verl.rpo.start import Start
from rpo_verl.upstream import queue

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
#: Two groups: from a prefix of four tokens, and full; whole lengths, and the estimator's advantages.
PREFIX, LENGTHS, ADVANTAGES = [4, 4, 0, 0], [8, 6, 5, 5], [0.7, -0.7, 0.5, -0.5]


def credited(keys, groups, rule, mode, **options):
    return write_credit(keys, "train", groups, CreditConfig(rule=rule), mode, **options)


class Table:
    """Rows by key; nested tensors are lists of rows of their own lengths."""

    def __init__(self, prefix, lengths, advantages, masks=None):
        self.keys = [f"{'ab'[row // 2]}_{row % 2}_0" for row in range(len(prefix))]
        self.prefix, self.lengths = (dict(zip(self.keys, tokens, strict=True)) for tokens in (prefix, lengths))
        self.columns = {"advantages": {}, "returns": {}, "response_mask": {}}
        for row, key in enumerate(self.keys):
            mask = torch.ones(lengths[row], dtype=torch.int64)
            mask[: prefix[row]] = 0
            if masks is not None and masks[row] is not None:
                mask = torch.tensor(masks[row])
            self.columns["response_mask"][key] = mask
            self.columns["advantages"][key] = advantages[row] * mask.float()
            self.columns["returns"][key] = 2 * advantages[row] * mask.float()
        self.written = []

    def read(self, keys, partition_id, *fields):
        assert partition_id == "train"
        return tuple([self.columns[name][key] for key in keys] for name in fields)

    def write(self, keys, partition_id, **columns):
        assert partition_id == "train"
        rows = {name: list(values) for name, values in columns.items()}
        assert all(len(values) == len(keys) for values in rows.values())
        self.written.append((list(keys), set(rows)))
        for name, values in rows.items():
            self.columns.setdefault(name, {}).update(zip(keys, values, strict=True))

    def groups(self, uids="ab"):
        found = []
        for uid in uids:
            keys = [key for key in self.keys if key.startswith(uid)]
            prefix = np.array([self.prefix[key] for key in keys])
            zeros = np.zeros(len(keys))
            found.append(
                Group(
                    start=Start(uid.encode(), "prefixed" if prefix.any() else "full", len(keys), 100),
                    keys=tuple(keys),
                    prefix_tokens=prefix,
                    response_tokens=np.array([self.lengths[key] for key in keys]),
                    oldest_policy=zeros.astype(int),
                    rewards=zeros,
                    correct=zeros.astype(bool),
                    shaped=zeros,
                )
            )
        return found

    def padded(self, name):
        return torch.nn.utils.rnn.pad_sequence([self.columns[name][key] for key in self.keys], batch_first=True)


@pytest.fixture
def make_table(monkeypatch):
    def make(prefix=PREFIX, lengths=LENGTHS, advantages=ADVANTAGES, masks=None):
        table = Table(prefix, lengths, advantages, masks)
        monkeypatch.setattr(queue, "read", table.read)
        monkeypatch.setattr(queue, "write", table.write)
        return table

    return make


def copy(table):
    return {name: {key: row.clone() for key, row in rows.items()} for name, rows in table.columns.items()}


def sums(table):
    """(B,) sums of `A` over the tokens in the loss."""
    return (table.padded("advantages") * table.padded("response_mask")).sum(dim=-1)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_divides_by_whole_responses(make_table, mode):
    """veRL's own aggregation of A over the suffix gives the paper's sum, divided by whole responses."""
    table = make_table()
    plain = sums(table)
    expected = {
        "token-mean": plain.sum() / sum(LENGTHS),
        "seq-mean-token-mean": (plain / torch.tensor(LENGTHS)).mean(),
        "seq-mean-token-sum": plain.mean(),
    }[mode]
    credited(table.keys, table.groups(), "none", mode)
    loss = agg_loss(table.padded("advantages"), table.padded("response_mask"), mode)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(table.written) == (0 if mode == "seq-mean-token-sum" else 1)
    # Neither the tokens in the loss nor the returns are touched.
    assert all(names == {"advantages", "returns"} for _, names in table.written)
    assert "loss_mask" not in table.columns


@pytest.mark.parametrize("mode", MODES)
def test_by_literal_the_loss_covers_whole_responses(make_table, mode):
    table = make_table()
    before = copy(table)
    credited(table.keys, table.groups(), "literal", mode)
    # With the prefix in the loss nothing is left to scale, and full rollouts stay as they were.
    assert table.written == [(["a_0_0", "a_1_0"], {"advantages", "returns", "response_mask", "loss_mask"})]
    for row, key in enumerate(table.keys[:2]):
        assert table.columns["response_mask"][key].tolist() == [1] * LENGTHS[row]
        assert table.columns["loss_mask"][key].tolist() == [1] * LENGTHS[row]
        assert table.columns["advantages"][key].tolist() == pytest.approx([ADVANTAGES[row]] * LENGTHS[row])
        assert table.columns["returns"][key].tolist() == pytest.approx([2 * ADVANTAGES[row]] * LENGTHS[row])
    for name, rows in before.items():
        for key in table.keys[2:]:
            assert torch.equal(table.columns[name][key], rows[key])
    whole = torch.tensor(ADVANTAGES) * torch.tensor(LENGTHS)
    expected = {
        "token-mean": whole.sum() / sum(LENGTHS),
        "seq-mean-token-mean": torch.tensor(ADVANTAGES).mean(),
        "seq-mean-token-sum": whole.mean(),
    }[mode]
    loss = agg_loss(table.padded("advantages"), table.padded("response_mask"), mode)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_by_literal_tokens_of_a_tool_stay_out_of_the_loss(make_table):
    table = make_table([1, 1], [4, 4], [0.5, -0.5], masks=[[0, 1, 0, 1], [0, 1, 1, 1]])
    credited(table.keys, table.groups("a"), "literal", "token-mean")
    assert table.columns["response_mask"]["a_0_0"].tolist() == [1, 1, 0, 1]
    assert table.columns["advantages"]["a_0_0"].tolist() == [0.5, 0.5, 0.0, 0.5]


@pytest.mark.parametrize("rule", ["none", "literal"])
@pytest.mark.parametrize("mode", MODES)
def test_without_prefixes_nothing_is_written(make_table, rule, mode):
    table = make_table(prefix=[0] * 4)
    before = copy(table)
    credited(table.keys, table.groups(), rule, mode)
    assert table.written == []
    assert all(torch.equal(row, before[name][key]) for name, rows in table.columns.items() for key, row in rows.items())


@pytest.mark.parametrize("rule", ["none", "literal"])
def test_rows_passed_through_have_no_prefix_of_ours(make_table, rule):
    """Their masks, with the tokens of a tool in front, are their agent's."""
    table = make_table()
    credited(table.keys, [], rule, "seq-mean-token-mean")
    assert table.written == []


def test_rows_passed_through_share_the_mean_over_tokens(make_table):
    table = make_table(prefix=[4, 4, 0, 0], lengths=[8, 6, 5, 5])
    credited(table.keys, table.groups("a"), "none", "token-mean")
    # 16 of 24 tokens are trained.
    assert table.columns["advantages"]["b_0_0"].tolist() == pytest.approx([0.5 * 16 / 24] * 5)
    table = make_table()
    credited(table.keys, table.groups("a"), "literal", "token-mean")
    assert table.columns["response_mask"]["b_0_0"].tolist() == [1] * 5
    assert table.columns["advantages"]["b_0_0"].tolist() == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("rule", ["none", "literal"])
@pytest.mark.parametrize("mode", MODES)
def test_advantages_come_back_as_the_estimator_computed_them(make_table, rule, mode):
    table = make_table()
    generated = credited(table.keys, table.groups(), rule, mode).generated
    assert generated == pytest.approx(dict(zip(table.keys, ADVANTAGES, strict=True)))
    table = make_table()
    assert list(credited(table.keys, table.groups("b"), rule, mode).generated) == ["b_0_0", "b_1_0"]


def test_what_was_read_is_not_changed_in_place(make_table):
    table = make_table()
    read = {key: table.columns["advantages"][key] for key in table.keys}
    before = {key: row.clone() for key, row in read.items()}
    credited(table.keys, table.groups(), "literal", "token-mean")
    assert all(torch.equal(read[key], before[key]) for key in table.keys)


@pytest.fixture
def paid(make_table):
    """A prefixed group whose four shared tokens were written with probability one half, and are likelier now."""
    table = make_table()
    known = {key: torch.where(torch.arange(n) < 4, np.log(0.5), -1.0) for key, n in table.lengths.items()}
    table.columns["rollout_log_probs"] = known
    table.columns["old_log_probs"] = {key: torch.full((n,), -0.1) for key, n in table.lengths.items()}
    groups = [replace(group, correct=np.array([True, True])) for group in table.groups("a")]
    return table, groups


def test_a_paid_prefix_is_trained_once_against_the_policy_that_wrote_it(paid):
    table, groups = paid
    credited(table.keys, groups, "paid", "seq-mean-token-sum")
    carrier, other = "a_1_0", "a_0_0"  # the shorter one carries it
    assert table.columns["advantages"][carrier][:4].tolist() == [2.0] * 4
    assert table.columns["response_mask"][carrier].tolist() == [1] * 6
    assert table.columns["old_log_probs"][carrier].tolist() == pytest.approx([np.log(0.5)] * 4 + [-0.1] * 2)
    assert table.columns["response_mask"][other][:4].tolist() == [0] * 4
    assert table.columns["old_log_probs"][other].tolist() == pytest.approx([-0.1] * 8)


def test_right_responses_are_imitated(paid):
    """Both members wrote the same, and a full group has a right and a wrong one."""
    table, _ = paid
    prefixed, full = table.groups()
    groups = [
        replace(prefixed, correct=np.array([True, True]), response_tokens=np.array([6, 6])),
        replace(full, correct=np.array([True, False])),
    ]
    table.columns["responses"] = {key: torch.arange(9) for key in table.keys}
    found = credited(table.keys, groups, "imitate", "seq-mean-token-sum")
    advantages = {key: row.tolist() for key, row in table.columns["advantages"].items()}
    assert advantages["a_0_0"] == [2.0] * 8 and advantages["a_1_0"] == [0.0] * 6, "one carries prefix and suffix"
    assert advantages["b_0_0"] == [1.0] * 5 and advantages["b_1_0"] == [0.0] * 5
    assert found.generated == {"a_0_0": 2, "a_1_0": 0, "b_0_0": 1, "b_1_0": 0} and found.prefixes == {"a_0_0": 2}


@pytest.mark.parametrize("mode", MODES)
def test_one_row_of_equal_responses_adds_what_all_of_them_would(make_table, mode):
    """Summed over two equally long rows, the advantages of a token are the same with and without the merging."""
    found = []
    for other in (1, 5):
        table = make_table([0] * 4, [4, 4, 2, 2], [0.5] * 4)
        texts = zip(table.keys, (1, other, 2, 3), strict=True)
        table.columns["responses"] = {key: torch.full((table.lengths[key],), text) for key, text in texts}
        groups = [replace(group, correct=np.array([True, group.keys[0] == "a_0_0"])) for group in table.groups()]
        generated = credited(table.keys, groups, "imitate", mode).generated
        assert list(generated.values()) == ([2, 0, 1, 0] if other == 1 else [1, 1, 1, 0])
        rows = [table.columns["advantages"][key] for key in table.keys]
        found.append([(rows[0] + rows[1]).tolist(), rows[2].tolist(), rows[3].tolist()])
    assert found[0] == found[1] == [[2.0] * 4, [1.0] * 2, [0.0] * 2]


def test_by_imitation_tokens_of_a_tool_stay_out_of_the_loss(make_table):
    table = make_table([0, 0], [4, 4], [0.5, -0.5], masks=[[1, 1, 0, 1], [1, 1, 1, 1]])
    table.columns["responses"] = {key: torch.arange(4) for key in table.keys}
    groups = [replace(group, correct=np.array([True, False])) for group in table.groups("a")]
    credited(table.keys, groups, "imitate", "token-mean")
    assert table.columns["advantages"]["a_0_0"].tolist() == [1, 1, 0, 1]
    assert table.columns["response_mask"]["a_0_0"].tolist() == [1, 1, 0, 1]


def test_veRLs_own_weights_leave_a_paid_prefix_alone(paid):
    table, groups = paid
    weights = {key: torch.where(torch.arange(n) < 4, 0.0, 1.5) for key, n in table.lengths.items()}
    table.columns["rollout_is_weights"] = dict(weights)
    credited(table.keys, groups, "paid", "seq-mean-token-sum", corrected=True)
    found = table.columns["rollout_is_weights"]
    assert found["a_1_0"].tolist() == [1.0] * 4 + [1.5] * 2
    assert all(torch.equal(found[key], weights[key]) for key in table.keys if key != "a_1_0")
    assert weights["a_1_0"][:4].tolist() == [0.0] * 4, "not in place"


def test_a_prefix_without_recorded_log_probabilities_has_no_credit(paid):
    table, groups = paid
    table.columns["rollout_log_probs"] = {key: torch.zeros(n) for key, n in table.lengths.items()}
    metrics = credited(table.keys, groups, "paid", "seq-mean-token-sum").metrics
    assert metrics == {"rpo/credit/groups_total": 0, "rpo/credit/tokens_total": 0, "rpo/credit/unknown_total": 1}
    assert all(table.columns["response_mask"][key][:4].tolist() == [0] * 4 for key in ("a_0_0", "a_1_0"))
    assert table.written == []


def test_prefixes_come_back_as_the_loss_has_them(make_table):
    table = make_table()
    assert credited(table.keys, table.groups(), "none", "token-mean").prefixes == {}
    table = make_table()
    found = credited(table.keys, table.groups(), "literal", "seq-mean-token-mean")
    assert found.prefixes == pytest.approx({"a_0_0": 0.7, "a_1_0": -0.7})
    assert found.metrics == {}
    table = make_table()
    assert credited(table.keys, table.groups(), "none", "token-mean").metrics == {}


@pytest.mark.parametrize(("right", "advantage", "carried"), [([True, True], 1.0, 2.0), ([True, False], 0.5, 1.0)])
def test_metrics_of_credit(paid, right, advantage, carried):
    """Two groups: one behind a prefix, and a full one that is right half the time."""
    table, _ = paid
    prefixed, full = table.groups()
    groups = [replace(prefixed, correct=np.array(right)), replace(full, correct=np.array([True, False]))]
    found = credited(table.keys, groups, "paid", "seq-mean-token-sum")
    assert found.prefixes == pytest.approx({"a_1_0": carried})
    wanted = {
        "rpo/credit/groups_total": 1, "rpo/credit/tokens_total": 4, "rpo/credit/unknown_total": 0,
        "rpo/credit/advantage_mean": advantage, "rpo/credit/advantage_std": 0,
    }  # fmt: skip
    assert found.metrics == pytest.approx(wanted)
