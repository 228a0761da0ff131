"""Every error the engine raises on purpose, each with its HTTP status and gRPC code.

    EngineError                 500  INTERNAL
    |- InvalidParameter         400  INVALID_ARGUMENT    the request itself is wrong
    |- Unauthorized             401  UNAUTHENTICATED
    |- Forbidden                403  PERMISSION_DENIED   policy, admission, trust
    |- NotFound                 404  NOT_FOUND
    |- Conflict                 409  FAILED_PRECONDITION the object's state forbids it
    |- AlreadyExists            409  ALREADY_EXISTS      a name or a port is taken
    |- NotModified              304  (an answer, not a failure: start of a running container)
    |- TooLarge                 413  RESOURCE_EXHAUSTED
    |- NotSupported             501  UNIMPLEMENTED       this driver or kernel cannot do it
    |- Unavailable              503  UNAVAILABLE         a plugin, node or registry does not answer
    |- DeadlineExceeded         504  DEADLINE_EXCEEDED
    |- PluginError              500  INTERNAL            a plugin is broken; it is named
    '- StartFailed              400  FAILED_PRECONDITION a container's process did not start

The message is what the user reads after ``Error response from daemon: ``, so it follows
dockerd's wording where dockerd has one (clients match on it), names the object, and says what to do.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all deliberate errors; ``str(error)`` is the text for the user."""

    http_status = 500
    grpc_code = "INTERNAL"

    @property
    def message(self) -> str:
        """The text for the user, without any class name or traceback."""
        return str(self)


class InvalidParameter(EngineError):
    """The request is wrong whatever the state of the engine."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class Unauthorized(EngineError):
    """Credentials are missing or wrong (registries, TLS clients)."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class Forbidden(EngineError):
    """A policy, admission or trust plugin said no; the message names it."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class NotFound(EngineError):
    """No such object."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class Conflict(EngineError):
    """The object exists but its state forbids the operation."""

    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class AlreadyExists(Conflict):
    """A name, address or port is already taken."""

    grpc_code = "ALREADY_EXISTS"


class NotModified(EngineError):
    """The object already is in the wanted state; HTTP 304 with an empty body."""

    http_status = 304
    grpc_code = "OK"


class TooLarge(EngineError):
    """A body, header, manifest or archive is over its limit."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class NotSupported(EngineError):
    """The driver, the kernel or the build of the engine cannot do this."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class Unavailable(EngineError):
    """Something outside this process does not answer."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class DeadlineExceeded(EngineError):
    """An operation with a time limit did not finish in time."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class PluginError(EngineError):
    """A plugin cannot be loaded or broke its contract; the message names it."""


class StartFailed(EngineError):
    """A container's process could not be started.

    ``exit_code`` is what the container's state records and ``docker run`` exits with:
    127 command not found, 126 found but not executable, 128 anything else.
    """

    http_status = 400
    grpc_code = "FAILED_PRECONDITION"

    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code
