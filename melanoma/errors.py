"""Errors that a caller treats differently. Any other exception is a fault of the program, of the machine or of a library."""


class UserError(ValueError):
    """Something that the user can mend: the message says what is wrong, where, and the remedy."""


class SettingError(UserError):
    """A setting, an argument or a configuration file breaks a rule."""


class DataError(UserError):
    """Input data break a rule the user can mend (a missing column, a bad row, a damaged data set)."""


class LeakageError(DataError):
    """Pictures of one group stand on two sides of a split."""


class BundleError(UserError):
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
