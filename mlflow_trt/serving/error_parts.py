"""An error of this package on its way from one of the server's processes to another."""

from __future__ import annotations

from typing import NamedTuple

from .. import errors
from ..errors import TrtError
from .protocol.datatypes import ProtocolError


class ErrorParts(NamedTuple):
    """What an error is made of, as plain values."""

    type: str
    found: str
    expected: str
    remedy: str

    @classmethod
    def of(cls, error: TrtError) -> ErrorParts:
        """Takes an error apart."""
        return cls(type(error).__name__, str(error.found), str(error.expected), str(error.remedy))

    def error(self) -> TrtError:
        """Puts the error together again; one of a type that has no such parts is a plain TrtError."""
        kind = ProtocolError if self.type == ProtocolError.__name__ else getattr(errors, self.type, TrtError)
        if not isinstance(kind, type) or not issubclass(kind, TrtError):
            kind = TrtError
        made: TrtError = kind(self.found, self.expected, self.remedy)
        return made
