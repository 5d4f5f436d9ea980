"""The one exception class that means: the user can fix this, and the message says how."""


class UserError(ValueError):
    """What was given, what is allowed, what to do; the command line shows it in one line and exits with 2."""
