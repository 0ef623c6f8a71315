"""Every bad value is refused with a message that names it."""

import pytest

from rpo_verl.config import ConfigError
from rpo_verl.rpo.options import RPOConfig, validate


def check(max_response_length=128, group_size=8, **values):
    config = RPOConfig()
    for path, value in values.items():
        section, key = path.split("__")
        assert hasattr(getattr(config, section), key)
        setattr(getattr(config, section), key, value)
    validate(config, max_response_length=max_response_length, group_size=group_size)


def test_the_defaults_are_valid():
    check()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"truncation__max_tokens": 0}, "rpo.truncation.max_tokens=0"),
        ({"truncation__max_tokens": -3}, "rpo.truncation.max_tokens=-3"),
        ({"truncation__max_tokens": 129}, "rpo.truncation.max_tokens=129"),
        ({"truncation__max_fraction": 0.0}, "rpo.truncation.max_fraction=0.0"),
        ({"truncation__max_fraction": 1.01}, "rpo.truncation.max_fraction=1.01"),
        ({"truncation__max_fraction": None}, "rpo.truncation.max_fraction=null"),
        ({"truncation__min_tokens": -1}, "rpo.truncation.min_tokens=-1"),
        ({"truncation__max_tokens": 5, "truncation__min_tokens": 6}, "rpo.truncation.min_tokens=6"),
        ({"truncation__max_prefix_tokens": 128}, "rpo.truncation.max_prefix_tokens=128"),
        ({"truncation__max_prefix_tokens": 0}, "rpo.truncation.max_prefix_tokens=0"),
        ({"rollout__full_rollout_every": -1}, "rpo.rollout.full_rollout_every=-1"),
        ({"rollout__full_rollout_every": 0.5}, "rpo.rollout.full_rollout_every=0.5"),
        ({"rollout__full_rollout_prob": 1.5}, "rpo.rollout.full_rollout_prob=1.5"),
        ({"rollout__suffix_max_tokens": 0}, "rpo.rollout.suffix_max_tokens=0"),
        ({"rollout__suffix_max_tokens": 500}, "rpo.rollout.suffix_max_tokens=500"),
        ({"rollout__suffix_max_multiple": 0.0}, "rpo.rollout.suffix_max_multiple=0.0"),
        ({"rollout__poll_interval_s": 0.0}, "rpo.rollout.poll_interval_s=0.0"),
        ({"reward__alpha": -0.1}, "rpo.reward.alpha=-0.1"),
        ({"reward__lo": 1.5}, "rpo.reward.lo=1.5"),
        ({"reward__length_reference": "median"}, "rpo.reward.length_reference=median"),
        ({"loss__mean_over": "tokens"}, "rpo.loss.mean_over=tokens"),
        ({"cache__max_failures": 0}, "rpo.cache.max_failures=0"),
        ({"cache__max_age": -1}, "rpo.cache.max_age=-1"),
        ({"cache__max_entries": 0}, "rpo.cache.max_entries=0"),
        ({"cache__max_bytes": 0}, "rpo.cache.max_bytes=0"),
        ({"cache__greedy_prob": -0.1}, "rpo.cache.greedy_prob=-0.1"),
        ({"group_size": 1}, "actor_rollout_ref.rollout.n=1"),
    ],
)
def test_bad_values_are_named(values, named):
    with pytest.raises(ConfigError, match=r"must be|set one of them") as error:
        check(**values)
    assert named in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        check(reward__alpha=-1.0, cache__greedy_prob=2.0, group_size=1)
    assert all(key in str(error.value) for key in ("reward.alpha", "cache.greedy_prob", "rollout.n"))


@pytest.mark.parametrize("nan", ["reward__alpha", "reward__lo", "cache__greedy_prob", "truncation__max_fraction"])
def test_nan_is_refused(nan):
    with pytest.raises(ConfigError):
        check(**{nan: float("nan")})
