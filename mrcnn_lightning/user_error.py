"""What a user got wrong."""

from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """A wrong value, file or choice: its message is one sentence that says the remedy.

    The program's edge prints it alone, as it does what Hydra, Lightning and the operating system
    say of a configuration or a file; a bug keeps its traceback.
    """


def built(make: Callable[..., Any], key: str, *arguments: Any, **options: Any) -> Any:
    """A part made with what the configuration says, whose complaints are about that.

    Args:
        make: what makes it.
        key: of the part in the configuration, for the message.
        arguments: of `make`.
        options: of `make`.

    Raises:
        UserError: it refuses what it is given.
    """
    try:
        return make(*arguments, **options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
