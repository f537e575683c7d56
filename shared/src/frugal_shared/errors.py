"""What went wrong, told to the person at the terminal in one line."""


class UsageError(ValueError):
    """The caller asked for something that cannot be had: exit code 2."""


class RunError(RuntimeError):
    """The request was fine and the run failed: exit code 1."""


class Terminated(BaseException):
    """The process was told to end (SIGTERM): exit code 143. Like ``KeyboardInterrupt`` no ``Exception``."""


def check_choice(field: str, value: object, allowed: object) -> None:
    """Raise :class:`UsageError` naming field, value and choices unless ``value`` is one of ``allowed``."""
    choices = list(allowed)  # type: ignore[call-overload]
    if value not in choices:
        raise UsageError(f"{field}={value!r} is unknown; allowed: {', '.join(map(str, choices))}")


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raise :class:`UsageError` naming field, value and bounds unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise UsageError(f"{field}={value!r} is out of range; allowed: {low} to {high}")


def check_positive(config: object, *fields: str) -> None:
    """Raise :class:`UsageError` naming the first of the fields that is not above 0."""
    for field in fields:
        if not getattr(config, field) > 0:
            raise UsageError(f"{field}={getattr(config, field)!r} is not possible; allowed: above 0")
