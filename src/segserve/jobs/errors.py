"""What cannot be done to a job in its state."""

from __future__ import annotations

from segserve.errors import BadInputError, MissingError


def missing(identity: str) -> MissingError:
    """There is no such job."""
    return MissingError(f"Job {identity} not found")


def wrong_state(verb: str, state: str, remedy: str) -> BadInputError:
    """The job's state does not allow it."""
    return BadInputError(f"Cannot {verb} job in state {state}: {remedy}.")
