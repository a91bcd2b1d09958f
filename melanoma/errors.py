"""Errors that a caller treats differently, and the search for one that a framework has wrapped.

Any other exception is a fault of the program, of the machine or of a library.
"""

from collections.abc import Iterator

_WRAPPED = ("cause", "_base_exc", "worker_failures", "controller_failure", "health_check_failure")
"""Attributes in which the errors of frameworks keep what they wrap.

Each holds an error, or a dict of the errors of several workers.
"""


class UserError(ValueError):
    """Something that the user can fix: the message says what is wrong, where, and what to do."""


class SettingError(UserError):
    """A setting, an argument or a configuration file breaks a rule."""


class DataError(UserError):
    """Input data break a rule: a missing column, a bad row, a damaged data set."""


class LeakageError(DataError):
    """Images of one group are on two sides of a split."""


class BundleError(UserError):
    """A bundle is damaged, tampered with, incomplete or of an unknown format."""


class NumImagesError(DataError):
    """A lesion has no image, or more than can be judged together."""


class OneImageOnlyError(DataError):
    """A lesion has several images, and the bundle has no contract for that."""


class RepeatedImageError(DataError):
    """Two images of one lesion are the same, so that one of them would count twice."""


class InvalidImageError(DataError):
    """An image cannot be used.

    Attributes:
        status: the HTTP status that a server answers with (400, 413, 415 or 422).
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


_DETERMINISTIC = (
    ValueError,
    ArithmeticError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


def root_cause(error: BaseException) -> BaseException:
    """Return the error that Ray wrapped.

    It may be below several layers and among the errors of several workers. Of several causes the
    most informative one is returned: first an error that the user can fix, then one that would
    happen again, then a lost worker. What other workers report of a lost one comes last.
    """
    return min(_leaves(error, frozenset()), key=_rank)


def is_deterministic(error: BaseException) -> bool:
    """Return whether the same work would fail in the same way again, so a retry is useless."""
    return isinstance(root_cause(error), _DETERMINISTIC)


def _leaves(error: BaseException, above: frozenset[int]) -> Iterator[BaseException]:
    # An error may wrap itself by way of another. Without ``above`` this would never end.
    wrapped = [inner for inner in _inside(error) if id(inner) not in above]
    for inner in wrapped:
        yield from _leaves(inner, above | {id(error)})
    if not wrapped:
        yield next((cause for cause in _chain(error) if isinstance(cause, UserError)), error)


def _inside(error: BaseException) -> list[BaseException]:
    kept = [getattr(error, name, None) for name in _WRAPPED]
    each = [
        inner
        for value in kept
        for inner in (value.values() if isinstance(value, dict) else [value])
    ]
    found = [inner for inner in each if isinstance(inner, BaseException)]
    return found or ([error.__cause__] if _is_of_ray(error) and error.__cause__ else [])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__


def _is_of_ray(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


def _rank(error: BaseException) -> int:
    kinds = (
        isinstance(error, UserError),
        isinstance(error, _DETERMINISTIC),
        isinstance(error, OSError) and not isinstance(error, ConnectionError),
        _is_of_ray(error),
    )
    return kinds.index(True) if True in kinds else len(kinds)
