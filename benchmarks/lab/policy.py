"""The policy that is trained: model, tokenizer, and the log-probabilities of responses."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rpo_verl.question import TokenizerIdentity
from rpo_verl.upstream.questions import read_end_ids


class BrokenDown(RuntimeError):
    """A training that cannot go on: the policy is right or wrong everywhere, or its probabilities are not numbers."""


@dataclass(frozen=True)
class Policy:
    """A causal language model with weights in float32 on the CPU, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: TokenizerIdentity
    end_ids: frozenset[int]
    """Ids at which generation ends."""

    bfloat16: bool = False
    """Whether its layers compute in bfloat16."""

    @classmethod
    def load(cls, folder: Path, bfloat16: bool = False) -> "Policy":
        """Load a Hugging Face folder."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        identity = TokenizerIdentity.of(str(folder), tokenizer.get_vocab(), tokenizer.chat_template)
        return cls(model, tokenizer, identity, frozenset(read_end_ids(str(folder), False, tokenizer)), bfloat16)

    def precision(self) -> AbstractContextManager[None]:
        """What its layers compute in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def log_probs(self, questions: Sequence[Sequence[int]], responses: Sequence[np.ndarray]) -> torch.Tensor:
        """Log-probabilities of the tokens of responses, with a gradient where it is enabled.

        Args:
            questions: (B,) token ids of each.
            responses: (B,) token ids of each, at least one.

        Returns:
            (B, T) float32; T is the longest response, and what lies behind a response is 0.
        """
        states, labels = self.states(questions, responses)
        with self.precision():
            logits = self.model.get_output_embeddings()(states)
        log_p = logits.float().log_softmax(-1)
        lengths = torch.tensor([len(response) for response in responses])
        written = torch.arange(labels.shape[1]) < lengths[:, None]
        return log_p.gather(2, labels[:, :, None])[:, :, 0] * written

    def states(
        self, questions: Sequence[Sequence[int]], responses: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the output layer where the tokens of responses are predicted.

        Args:
            questions: (B,) token ids of each.
            responses: (B,) token ids of each, at least one.

        Returns:
            (B, T, H) float32 states and (B, T) int64 tokens; what lies behind a response means nothing.
        """
        whole = [torch.tensor([*question, *response]) for question, response in zip(questions, responses, strict=True)]
        # Filled up on the right, where causal attention does not look.
        ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
        with self.precision():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        longest = max(map(len, responses))
        offsets, steps = torch.tensor([len(question) for question in questions]), torch.arange(longest)
        # Rows of unequal questions: a short row's last columns are read twice.
        target = (offsets[:, None] + steps).clamp(max=ids.shape[1] - 1)
        before = hidden.gather(1, (target - 1)[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return before, ids.gather(1, target)
