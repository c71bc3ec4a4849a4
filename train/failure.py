"""The error that ends a run although the user did not stop it."""

FAILED, DIVERGED = 2, 3  # exit statuses; 2 is also that of bad input


class RunFailure(Exception):
    """The run cannot continue; the message is one line for the user.

    Attributes:
        status: the exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
