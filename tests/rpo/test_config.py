"""Every bad value is refused with a message that names it."""

import math
from dataclasses import fields, is_dataclass

import pytest

from rpo_verl.config import ConfigError, out_of_range, refuse
from rpo_verl.lean.options import LeanConfig
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.r2po.options import validate as validate_r2po
from rpo_verl.rpo.options import RPOConfig, validate

#: Option → values at the ends of its range, and values just outside it.
RANGES = {
    "rpo.truncation.max_fraction": ([0.001, 1.0], [0.0, -0.5, 1.01]),
    "rpo.truncation.max_tokens": ([1, 128], [0, -3]),
    "rpo.truncation.min_tokens": ([0, 127], [-1]),
    "rpo.truncation.distribution": (["uniform", "log_uniform"], ["normal", ""]),
    "rpo.truncation.draw_per": (["step", "question"], ["batch"]),
    "rpo.rollout.full_rollout_every": ([0, 1, 1.5, 100], [-1, 0.5]),
    "rpo.rollout.trunks": ([0, 4], [-1]),
    "rpo.reward.alpha": ([0, 10.0], [-0.1]),
    "rpo.reward.lo": ([0, 1], [-0.01, 1.5]),
    "rpo.reward.filter_at_most": ([0, 0.25, 3.0], [-0.1]),
    "rpo.reward.correct_above": ([-2.0, 0, 5.0], []),
    "rpo.cache.greedy_prob": ([0, 1], [-0.1, 1.1]),
    "rpo.cache.max_failures": ([1], [0, -1]),
    "rpo.cache.max_entries": ([1], [0]),
    "rpo.cache.max_bytes": ([300], [0, 299]),
    "rpo.credit.rule": (["none", "literal", "paid", "imitate"], ["whole", "value"]),
    "r2po.head_every": ([2, 40], [0, -1]),
    "r2po.head_steps": ([0, 4], [-1]),
    "r2po.correction": (["importance", "none"], ["token"]),
    "r2po.head.rank": ([1, 64], [0]),
    "r2po.head.init_std": ([1e-6, 1.0], [0.0, -1e-6]),
    "r2po.rarity.by": (["ngrams", "reward"], ["answer"]),
    "r2po.rarity.ngram": ([1, 8], [0]),
    "r2po.rarity.correct_above": ([-2.0, 0, 5.0], []),
    "r2po.stage1.lr": ([1e-6, 1.0], [0.0, -1e-3]),
    "r2po.stage1.epochs": ([1, 20], [0]),
    "r2po.stage1.clip_ratio": ([0.01, 2.0], [0.0]),
    "r2po.stage1.clip_grad": ([0.01, 10.0], [0.0]),
    "r2po.stage1.kl_bound": ([1e-4, 1.0], [0.0, -0.1]),
    "r2po.stage1.kl_weight": ([0.0, 0.04], [-0.1]),
    "lean.poll_interval_s": ([0.001, 2.0], [0, -1.0]),
    "lean.rows_per_group": ([2, 8], [1, 0]),
    "rpo.reward.shaping": ([True, False, 1, 0], [2, -1]),
    "rpo.cache.keep_correct": ([True, False], [7]),
    "lean.skip_zero_advantage": ([True, False], [7]),
    "lean.share_prefix": ([True, False], [7]),
}
SECTIONS = {"rpo": RPOConfig, "r2po": R2POConfig, "lean": LeanConfig}


def options_of(section, key):
    """Every option of a section: key → its field."""
    for declared in fields(section):
        value = getattr(section, declared.name)
        if is_dataclass(value):
            yield from options_of(value, f"{key}.{declared.name}")
        else:
            yield f"{key}.{declared.name}", declared


OPTIONS = dict(pair for name, build in SECTIONS.items() for pair in options_of(build(), name))


def with_value(key, value):
    """The section of an option, which has this value."""
    name, *path, last = key.split(".")
    section = found = SECTIONS[name]()
    for part in path:
        found = getattr(found, part)
    assert hasattr(found, last)
    setattr(found, last, value)
    return section


def problems(key, value):
    return list(out_of_range(with_value(key, value), key.split(".")[0]))


def check(max_response_length=128, group_size=8, **values):
    config = RPOConfig()
    for path, value in values.items():
        section, key = path.split("__")
        assert hasattr(getattr(config, section), key)
        setattr(getattr(config, section), key, value)
    validate(config, max_response_length=max_response_length, group_size=group_size)


def test_the_defaults_are_valid():
    check()
    validate_r2po(R2POConfig())
    assert list(out_of_range(LeanConfig(), "lean")) == []


def test_every_option_with_a_range_is_tested_here():
    assert {key for key, declared in OPTIONS.items() if "range" in declared.metadata} == set(RANGES)
    unbounded = {key for key in OPTIONS if key not in RANGES}
    assert unbounded == {"rpo.seed", "rpo.cache.path", "r2po.seed"}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (good, _) in RANGES.items() for value in good])
def test_the_ends_of_a_range_are_in_it(key, value):
    assert problems(key, value) == []
    if key.startswith("rpo."):
        validate(with_value(key, value), max_response_length=128, group_size=8)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (_, bad) in RANGES.items() for value in bad])
def test_a_value_outside_its_range_is_named(key, value):
    (problem,) = problems(key, value)
    assert problem == f"{key}={value}: must be {OPTIONS[key].metadata['range'].text}"
    if key.startswith("rpo."):
        with pytest.raises(ConfigError) as error:
            validate(with_value(key, value), max_response_length=128, group_size=8)
        assert problem in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [key for key in RANGES if "float" in str(OPTIONS[key].type)])
def test_a_value_that_is_not_finite_is_refused(key, value):
    (problem,) = problems(key, value)
    assert problem.startswith(f"{key}={value}: must be ")


@pytest.mark.parametrize("key", [key for key in RANGES if "None" in str(OPTIONS[key].type)])
def test_null_is_in_every_range_whose_type_has_it(key):
    assert problems(key, None) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"truncation__max_tokens": 129}, "rpo.truncation.max_tokens=129"),
        ({"truncation__max_fraction": None}, "rpo.truncation.max_fraction=null"),
        ({"truncation__max_tokens": 5, "truncation__min_tokens": 6}, "rpo.truncation.min_tokens=6"),
        ({"truncation__min_tokens": 128}, "rpo.truncation.min_tokens=128"),
        ({"truncation__min_tokens": 500}, "rpo.truncation.min_tokens=500"),
        ({"group_size": 1}, "actor_rollout_ref.rollout.n=1"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, named):
    with pytest.raises(ConfigError, match=r"must be|set one of them") as error:
        check(**values)
    assert named in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        check(reward__alpha=-1.0, cache__greedy_prob=2.0, group_size=1)
    assert all(key in str(error.value) for key in ("reward.alpha", "cache.greedy_prob", "rollout.n"))


def test_without_problems_nothing_is_refused():
    refuse([])


@pytest.mark.parametrize(("every", "steps"), [(1, 1), (5, 5), (5, 9)])
def test_a_schedule_without_a_step_for_the_policy_is_refused(every, steps):
    with pytest.raises(ConfigError, match=f"r2po.head_steps={steps}: must be below r2po.head_every = {every}"):
        validate_r2po(R2POConfig(head_every=every, head_steps=steps))
    validate_r2po(R2POConfig(head_every=steps + 1, head_steps=steps))
