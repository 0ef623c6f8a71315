"""pass@k of a checkpoint: which questions, which samples are done, what they say. No veRL, vLLM or Ray in here."""
