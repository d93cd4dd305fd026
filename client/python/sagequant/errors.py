"""What a call of the daemon raises: one class a status code, with the reason and metadata the daemon sent."""
from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Type

import grpc
from google.rpc import error_details_pb2, status_pb2


class SageError(Exception):
    """A failed call. `reason` is for programs (UPPER_SNAKE), `message` for people, `metadata` names what was wrong."""

    code = "UNKNOWN"

    def __init__(self, message: str, reason: str = "", metadata: Optional[Mapping[str, str]] = None,
                 retry_after: Optional[float] = None, fields: Optional[Mapping[str, str]] = None) -> None:
        super().__init__(f"{message} [{reason or self.code}]")
        self.message = message
        self.reason = reason or self.code
        self.metadata: Dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after  # seconds after which the same call may work
        self.fields: Dict[str, str] = dict(fields or {})  # wrong fields of the request -> why


class CancelledError(SageError):
    code = "CANCELLED"


class InvalidArgumentError(SageError, ValueError):
    code = "INVALID_ARGUMENT"


class DeadlineExceededError(SageError, TimeoutError):
    code = "DEADLINE_EXCEEDED"


class NotFoundError(SageError, LookupError):
    code = "NOT_FOUND"


class AlreadyExistsError(SageError):
    code = "ALREADY_EXISTS"


class PermissionDeniedError(SageError, PermissionError):
    code = "PERMISSION_DENIED"


class ResourceExhaustedError(SageError):
    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(SageError):
    code = "FAILED_PRECONDITION"


class AbortedError(SageError):
    code = "ABORTED"


class OutOfRangeError(SageError):
    code = "OUT_OF_RANGE"


class UnsupportedError(SageError, NotImplementedError):
    code = "UNIMPLEMENTED"


class InternalError(SageError):
    code = "INTERNAL"


class UnavailableError(SageError, ConnectionError):
    code = "UNAVAILABLE"


class DataLossError(SageError):
    code = "DATA_LOSS"


class UnauthenticatedError(SageError):
    code = "UNAUTHENTICATED"


_CLASSES: Dict[str, Type[SageError]] = {
    c.code: c for c in (CancelledError, InvalidArgumentError, DeadlineExceededError, NotFoundError, AlreadyExistsError,
                        PermissionDeniedError, ResourceExhaustedError, FailedPreconditionError, AbortedError, OutOfRangeError,
                        UnsupportedError, InternalError, UnavailableError, DataLossError, UnauthenticatedError)}
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def from_status(status: Any) -> SageError:
    """The error that a google.rpc.Status (of a call or of an operation) describes."""
    reason, metadata, retry, fields = "", {}, None, {}
    for detail in status.details:
        info, delay, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
            metadata.update(info.metadata)
        elif detail.Unpack(delay):
            retry = delay.retry_delay.seconds + delay.retry_delay.nanos * 1e-9
        elif detail.Unpack(bad):
            fields.update({v.field: v.description for v in bad.field_violations})
    kind = _CLASSES.get(_NAMES.get(status.code, "UNKNOWN"), SageError)
    return kind(status.message, reason, metadata, retry, fields)


def from_rpc(error: Any) -> SageError:
    """The error that a failed call raised in grpcio (a grpc.RpcError that is also the call)."""
    status = status_pb2.Status()
    for key, value in (error.trailing_metadata() or ()):
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status.ParseFromString(value)
    status.code = error.code().value[0]
    status.message = error.details() or ""
    return from_status(status)
