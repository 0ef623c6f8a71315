"""The command `rpo-verl` and its parts. Imports go one way: cli → evaluation → offline, and cli → report."""
