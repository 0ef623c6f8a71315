"""The rollout head: a residual on the logits that training rollouts are sampled with and inference drops."""

import torch

#: Names of the head's tensors on their way to vLLM, where no weight of a model begins like that.
PREFIX = "rollout_head."


class RolloutHead(torch.nn.Module):
    """`residual = W_up relu(W_down h)`, without biases, in float32 whatever the model's dtype.

    The authors' head has the width of `h` (`Linear(H, H)`, ReLU, `Linear(H, V)`). A low rank keeps it small enough to
    be replicated on every device, and a `W_up` of zeros makes rollouts begin as the policy's own.
    """

    def __init__(self, hidden: int, vocabulary: int, rank: int | None, init_std: float | None, seed: int) -> None:
        """Draw the initial weights, the same on every device.

        Args:
            hidden: H, size of the hidden state.
            vocabulary: V, number of logits.
            rank: width r; None: H.
            init_std: of all weights; None: `W_up` is zero, and `W_down` has variance 1 / H.
            seed: of the draw.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width = hidden if rank is None else rank
        down = torch.randn(width, hidden, generator=generator)
        up = torch.randn(vocabulary, width, generator=generator) if init_std else torch.zeros(vocabulary, width)
        self.down = torch.nn.Parameter(down * (init_std or hidden**-0.5))
        self.up = torch.nn.Parameter(up * (init_std or 1.0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The residual.

        Args:
            hidden: (…, H) of any float dtype, input of the model's output layer.

        Returns:
            (…, V) float32, to be added to the logits before they are divided by the temperature.
        """
        return residual(hidden, self.down, self.up)


def residual(hidden: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`RolloutHead.forward` from its weights, (r, H) and (V, r) float32."""
    return torch.relu(hidden.float() @ down.T) @ up.T
