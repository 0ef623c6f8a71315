"""The exception of every tool."""


class CommandError(ValueError):
    """A command that cannot start or continue. The message names the problem and the fix."""
