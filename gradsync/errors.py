"""The ways in which a script of this project ends badly."""


class UsageError(Exception):
    """Input that cannot be used: one line that names the flag or file and what to do. Exit code 2."""


class RunError(Exception):
    """A run that failed for a reason we can name: one line. Exit code 1."""


class JobError(RunError):
    """A failure that all ranks see alike, so that one of them is enough to say so."""


class PeerLost(RunError, RuntimeError):
    """The connection to another rank has ended: what that rank's end looks like from here."""
