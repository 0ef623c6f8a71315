"""The command `rpo-verl`: options and output of its sub-commands."""
