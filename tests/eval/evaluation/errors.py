"""The one error that a user of the tool can mend."""


class UsageError(Exception):
    """Something that was asked for cannot be done; the message names it and says what can."""
