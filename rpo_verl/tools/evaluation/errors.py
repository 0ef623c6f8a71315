"""The one exception of an evaluation that cannot begin or go on."""


class EvaluationError(ValueError):
    """The message names what is wrong and the way on."""
