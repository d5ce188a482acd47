"""The tree of errors.

DubitoError
├── InvalidArgument        a value that a caller gave; names the field, what came, what is accepted
├── UnknownModel           no such model or version
├── RepositoryUnavailable  the repository does not answer now, so nobody knows what is in it
├── NotImplementedYet      declared in the contract, not built
├── UnsupportedNetwork     a network that cannot be packed, and why
│   ├── NoDropout          nothing in it is random
│   ├── UnknownRandomness  something in it is random and is not a dropout that we know
│   └── AuditFailed        it was rewritten, but the rewritten program does not keep a law
├── CorruptVersion         a version on disk that must not be served
└── CalibrationMismatch    a calibration of another program
"""

from __future__ import annotations


class DubitoError(Exception):
    """Root of every error that dubito raises on purpose."""


class InvalidArgument(DubitoError):
    """A value is not accepted: `field` names it, `given` is what came, `accepted` what would do."""

    def __init__(self, field: str, given: object, accepted: str) -> None:
        super().__init__(f"{field}: got {given}; accepted: {accepted}")
        self.field, self.given, self.accepted = field, str(given), accepted


class UnknownModel(DubitoError):
    """No model of that name, or no version of that number, is served."""


class RepositoryUnavailable(DubitoError):
    """The repository cannot be read now: its disk, its network or its store does not answer."""


class NotImplementedYet(DubitoError):
    """The contract declares it, this release does not do it."""


class UnsupportedNetwork(DubitoError):
    """The network cannot be packed."""


class NoDropout(UnsupportedNetwork):
    """The network holds no active dropout, so every draw would be the same."""


class UnknownRandomness(UnsupportedNetwork):
    """The network draws random numbers in an operation that is not a supported dropout."""


class AuditFailed(UnsupportedNetwork):
    """The rewritten program does not keep a law that serving relies on."""


class CorruptVersion(DubitoError):
    """The version on disk is incomplete, changed, or holds what must not be loaded."""


class CalibrationMismatch(DubitoError):
    """The calibration was fitted for another program."""
