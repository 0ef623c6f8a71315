"""veRL's data set, in which question 6 has its message as a list of parts; veRL loads this file by its path."""

from verl.utils.dataset.rl_dataset import RLHFDataset


class PartsDataset(RLHFDataset):
    """What a row with an image becomes, with text for its only part."""

    def _build_messages(self, example, key):
        messages = super()._build_messages(example, key)
        if example["extra_info"]["index"] == 6:
            return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        return messages
