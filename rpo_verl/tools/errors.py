"""The exception of every tool."""


class CommandError(ValueError):
    """A command that cannot begin or go on. The message names the problem and the fix."""
