"""What a user got wrong."""


class UserError(ValueError):
    """A wrong value, file or choice: its message is one sentence that says the remedy.

    The program's edge prints it alone; every other exception keeps its traceback.
    """
