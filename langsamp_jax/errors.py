"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the input, settled in one line: what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; everything else that
    escapes is a defect of ours and keeps its traceback.
    """
