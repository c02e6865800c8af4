"""Errors a user can act on: what is wrong, where it is, how to fix it."""


class UserError(ValueError):
    """Raised with one string, so that it survives the pickling between Ray workers."""


class BudgetSpentError(UserError):
    """The run has stopped at a limit that the user set; with a higher one the same command goes on."""


def explain(*, what: str, where: str, fix: str) -> UserError:
    """Return (not raise) an error that says what is wrong, where it is, and how to fix it."""
    return UserError(f"{what}\n  where: {where}\n  fix:   {fix}")


def need(module: str, *, extra: str, purpose: str) -> UserError:
    """The error for a missing optional dependency, with the exact install line."""
    return explain(
        what=f"{purpose} needs the Python package `{module}`, which is not installed",
        where="this Python environment",
        fix=f"pip install 'infinity-mm[{extra}]'",
    )
