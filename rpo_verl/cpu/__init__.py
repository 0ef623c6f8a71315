"""veRL on a machine without a GPU: a platform, and the few patches of upstream that it needs."""
