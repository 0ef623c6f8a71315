"""veRL's policy loss, which writes down how many tokens it counts; VERL_USE_EXTERNAL_MODULES loads it."""

import os

from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss


@register_policy_loss("vanilla")  # by its own name, because RPO leaves rows out only of losses that it knows
def compute_recording_loss(*, response_mask, **kwargs):
    with open(os.environ["LOSS_TOKENS_FILE"], "a") as stream:
        stream.write(f"{int(response_mask.sum())}\n")
    return compute_policy_loss_vanilla(response_mask=response_mask, **kwargs)
