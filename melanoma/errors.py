"""The few errors a caller treats differently; everything else is a ValueError or a crash."""


class DataError(ValueError):
    """Input data break a rule the user can mend (a missing column, a bad row, a damaged data set)."""


class LeakageError(DataError):
    """Pictures of one group stand on two sides of a split."""


class BundleError(ValueError):
    """A bundle is damaged, tampered with, incomplete or of an unknown format."""


class InvalidImageError(DataError):
    """A picture cannot be used.

    Attributes:
        status: the HTTP status a server answers with (400, 413, 415 or 422).
        code: a stable machine-readable name of the rule that was broken.
    """

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Keep status and code when the error crosses a process."""
        return _rebuild_image_error, (str(self), self.status, self.code)


def _rebuild_image_error(message: str, status: int, code: str) -> InvalidImageError:
    return InvalidImageError(message, status=status, code=code)
