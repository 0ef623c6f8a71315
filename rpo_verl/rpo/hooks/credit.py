"""Credit, written to veRL's queue once, after the user's estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpo_verl.rpo.credit import Span, credit, imitation, prefix_value, response_mean_weights
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CreditConfig
from rpo_verl.upstream import queue


@dataclass(frozen=True)
class Credited:
    """What credit found and gave."""

    generated: dict[str, float]
    """Row of a group → advantage of its generated tokens, before the factor of the mean."""

    prefixes: dict[str, float]
    """Row of a group → advantage of its prefix in the loss; rows whose prefix is not trained are not in it."""

    metrics: dict[str, float]


def write_credit(
    keys: Sequence[str],
    partition_id: str,
    groups: Sequence[Group],
    options: CreditConfig,
    loss_agg_mode: str,
    corrected: bool = False,
) -> Credited:
    """Give every token of a batch its final advantage, and put the tokens of spans into the loss.

    Args:
        keys: (B,) rows of the batch; the estimator's advantages are in the queue.
        partition_id: the batch's.
        groups: those of the batch that RPO started.
        options: see `rpo_verl.rpo.credit`.
        loss_agg_mode: veRL's `actor.loss_agg_mode`.
        corrected: whether veRL weighs tokens by `rollout_is_weights`. Those of a prefix become 1: its ratio to the
            policy that wrote it stands in the loss itself.
    """
    names = ("advantages", "returns", "response_mask")
    rows = {key: list(row) for key, *row in zip(keys, *queue.read(keys, partition_id, *names), strict=True)}
    generated, planned, replaced = dict[str, float](), [], set[str]()
    responses = _responses(groups, partition_id) if options.rule == "imitate" else {}
    for group in groups:
        reused = group.prefix_tokens.tolist()
        own = np.array([float(rows[key][0][tokens]) for key, tokens in zip(group.keys, reused, strict=True)])
        if options.rule == "imitate":
            own = imitation(group, [responses[key] for key in group.keys])
            replaced |= set(group.keys)
        generated |= zip(group.keys, own.tolist(), strict=True)
        planned.append((group, credit(group, own, options, loss_agg_mode)))
    unknown: set[str] = set()
    if options.needs_logprobs:
        carried = {k: row[0] for group, found in planned for k, row in zip(group.keys, found, strict=True) if row}
        unknown = _use_old_log_probs(carried, partition_id)
    spans, credited, untrained, counted = {}, {}, {}, _Counted(options)
    for group, given in planned:
        found = [[] if key in unknown else row for key, row in zip(group.keys, given, strict=True)]
        counted.add(group, given, found)
        spans |= {key: row for key, row in zip(group.keys, found, strict=True) if row}
        covered = [sum(stop - start for start, stop, _ in row) for row in found]
        credited |= zip(group.keys, covered, strict=True)
        untrained |= {key: n - m for key, n, m in zip(group.keys, group.prefix_tokens.tolist(), covered, strict=True)}
    trained = np.array([int(mask.sum()) + credited.get(key, 0) for key, (*_, mask) in rows.items()])
    weights = response_mean_weights(trained, np.array([untrained.get(key, 0) for key in keys]), loss_agg_mode)
    # Rows without a trained token only pad the batch.
    factors = dict(zip(rows, np.where(trained > 0, weights, 1.0).astype(np.float32).tolist(), strict=True))
    result = Credited(generated, {key: row[0][2] * factors[key] for key, row in spans.items()}, counted.metrics())
    changed = [key for key in rows if key in spans or key in replaced or factors[key] != 1]
    if not changed:
        return result
    for key in changed:
        advantages, returns, mask = (values.clone() for values in rows[key])
        if key in replaced:
            advantages = generated[key] * mask.to(advantages.dtype)
        advantages *= factors[key]
        for start, stop, advantage in spans.get(key, ()):
            advantages[start:stop], returns[start:stop], mask[start:stop] = advantage * factors[key], returns[stop], 1
        rows[key] = [advantages, returns, mask]
    columns = dict(zip(names, zip(*(rows[key] for key in changed), strict=True), strict=True))
    mask = columns.pop("response_mask")
    # veRL keeps the mask under two names.
    masks = {"response_mask": mask, "loss_mask": mask} if spans else {}
    queue.write(changed, partition_id, **columns, **masks)
    if corrected and spans:
        _weigh_prefixes_once(spans, partition_id)
    return result


def _responses(groups: Sequence[Group], partition_id: str) -> dict[str, list[int]]:
    """Row → token ids of its response, of all members of groups."""
    lengths = {key: n for group in groups for key, n in zip(group.keys, group.response_tokens.tolist(), strict=True)}
    (found,) = queue.read(list(lengths), partition_id, "responses")
    return {key: row[:n].tolist() for (key, n), row in zip(lengths.items(), found, strict=True)}


class _Counted:
    """Metrics of the rules that give a shared prefix one advantage."""

    def __init__(self, options: CreditConfig) -> None:
        self._options = options
        self._advantages, self._tokens, self._unknown = list[float](), 0, 0

    def add(self, group: Group, given: list[list[Span]], found: list[list[Span]]) -> None:
        """Count a group: the spans that its prefix earned, and those that are trained."""
        trained = sum(stop - start for row in found for start, stop, _ in row)
        if trained:
            self._advantages.append(prefix_value(group.correct))
            self._tokens += trained
        elif any(given):
            self._unknown += 1

    def metrics(self) -> dict[str, float]:
        """`rpo/credit/*`; means are absent where there is nothing to average."""
        if not self._options.needs_logprobs:
            return {}
        found: dict[str, float] = {
            "rpo/credit/groups_total": len(self._advantages),
            "rpo/credit/tokens_total": self._tokens,
            "rpo/credit/unknown_total": self._unknown,
        }
        if self._advantages:
            found["rpo/credit/advantage_mean"] = float(np.mean(self._advantages))
            found["rpo/credit/advantage_std"] = float(np.std(self._advantages))
        return found


def _weigh_prefixes_once(spans: Mapping[str, Sequence[Span]], partition_id: str) -> None:
    """Set veRL's weights to 1 on the tokens of spans; veRL gave those outside of its mask a weight of 0."""
    (found,) = queue.read(list(spans), partition_id, "rollout_is_weights")
    weights = [row.clone() for row in found]
    for row, given in zip(weights, spans.values(), strict=True):
        for start, stop, _ in given:
            row[start:stop] = 1
    queue.write(list(spans), partition_id, rollout_is_weights=weights)


def _use_old_log_probs(carried: Mapping[str, Span], partition_id: str) -> set[str]:
    """Make the policy that wrote a prefix its old policy in the loss, also where veRL computes old log-probabilities.

    Args:
        carried: row → the prefix that it carries.
        partition_id: the batch's.

    Returns:
        the rows of prefixes whose log-probabilities nobody recorded, as of imported answers: rollouts have zeros there.
    """
    if not carried:
        return set()
    columns = queue.read(list(carried), partition_id, "rollout_log_probs", "old_log_probs")
    old, unknown = {}, set()
    for (key, (start, stop, _)), then, now in zip(carried.items(), *columns, strict=True):
        if not then[start:stop].any():
            unknown.add(key)
            continue
        old[key] = now.clone()
        old[key][start:stop] = then[start:stop]
    if old:
        queue.write(list(old), partition_id, old_log_probs=list(old.values()))
    return unknown
