"""veRL as this package sees it: every name it relies on, the queue, the registries, the tokens of a question."""
