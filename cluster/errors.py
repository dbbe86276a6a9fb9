"""The one error tree: everything that a caller of this package may have to tell apart.

Nothing here knows HTTP; `status` is the number that api/errors.py puts on the wire, kept beside the code
because the two are one decision. OCI's codes and Distribution's few own ones:

    RegistryError                     any refusal that a client sees: code, status, message, detail
    ├── NameInvalid                   NAME_INVALID 400            ├── Unauthorized     UNAUTHORIZED 401
    ├── NameUnknown                   NAME_UNKNOWN 404            ├── Denied           DENIED 403
    ├── TagInvalid                    TAG_INVALID 400             │   └── PreconditionFailed      412
    ├── DigestInvalid                 DIGEST_INVALID 400          ├── Unsupported      UNSUPPORTED 405
    ├── SizeInvalid                   SIZE_INVALID 400            │   ├── BadRequest              400
    │   └── TooLarge                               413            │   ├── NoSuchRoute             404
    ├── RangeInvalid                  RANGE_INVALID 416           │   ├── RequestTimeout          408
    ├── PaginationInvalid             PAGINATION_NUMBER_INVALID 400│   ├── TargetTooLong           414
    ├── ManifestInvalid               MANIFEST_INVALID 400        │   ├── HeadTooLarge            431
    │   ├── ManifestTooLarge                       413            │   └── CodingUnsupported       501
    │   └── TooManyTags                            414            ├── TooManyRequests  TOOMANYREQUESTS 429
    ├── ManifestUnknown               MANIFEST_UNKNOWN 404        ├── Unavailable      UNAVAILABLE 503
    ├── ManifestBlobUnknown           MANIFEST_BLOB_UNKNOWN 400   └── Unknown          UNKNOWN 500
    ├── BlobUnknown                   BLOB_UNKNOWN 404
    ├── UploadUnknown                 BLOB_UPLOAD_UNKNOWN 404
    └── UploadInvalid                 BLOB_UPLOAD_INVALID 404
    RegistryErrors                    several refusals of one request (a manifest's missing references)
    ConfigError                       the configuration cannot be used (cluster/config.py)
    StorageError                      what a storage driver may raise (cluster/storage/driver.py)
    StateError                        what a state store may raise (cluster/state/store.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class RegistryError(Exception):
    """A refusal in the form of the spec: OCI distribution-spec, "Error Codes"."""

    code = "UNKNOWN"
    status = 500
    message = "unknown error"

    def __init__(
        self, detail: Any = None, *, message: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message or self.message)
        if message is not None:
            self.message = message
        self.detail = detail
        self.headers: dict[str, str] = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """One entry of the envelope's `errors` list; `detail` is left out when there is none."""
        entry: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            entry["detail"] = self.detail
        return entry

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.detail})" if self.detail is not None else "")


class RegistryErrors(Exception):
    """Several refusals of one request; the first one decides the status. Never empty."""

    def __init__(self, errors: Sequence[RegistryError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = list(errors)


class NameInvalid(RegistryError):
    code, status, message = "NAME_INVALID", 400, "invalid repository name"


class NameUnknown(RegistryError):
    code, status, message = "NAME_UNKNOWN", 404, "repository name not known to registry"


class TagInvalid(RegistryError):
    code, status, message = "TAG_INVALID", 400, "invalid tag"


class DigestInvalid(RegistryError):
    code, status, message = "DIGEST_INVALID", 400, "provided digest did not match uploaded content"


class SizeInvalid(RegistryError):
    code, status, message = "SIZE_INVALID", 400, "provided length did not match content length"


class TooLarge(SizeInvalid):
    status, message = 413, "the request body is too large"


class RangeInvalid(RegistryError):
    code, status, message = "RANGE_INVALID", 416, "invalid content range"


class PaginationInvalid(RegistryError):
    code, status, message = "PAGINATION_NUMBER_INVALID", 400, "invalid number of results requested"


class ManifestInvalid(RegistryError):
    code, status, message = "MANIFEST_INVALID", 400, "manifest invalid"


class ManifestTooLarge(ManifestInvalid):
    status, message = 413, "the manifest is too large"


class TooManyTags(ManifestInvalid):
    status, message = 414, "too many tags in one request"


class ManifestUnknown(RegistryError):
    code, status, message = "MANIFEST_UNKNOWN", 404, "manifest unknown"


class ManifestBlobUnknown(RegistryError):
    code, status, message = "MANIFEST_BLOB_UNKNOWN", 400, "manifest references a blob unknown to the registry"


class BlobUnknown(RegistryError):
    code, status, message = "BLOB_UNKNOWN", 404, "blob unknown to registry"


class UploadUnknown(RegistryError):
    code, status, message = "BLOB_UPLOAD_UNKNOWN", 404, "blob upload unknown to registry"


class UploadInvalid(RegistryError):
    code, status, message = "BLOB_UPLOAD_INVALID", 404, "blob upload invalid"


class Unauthorized(RegistryError):
    code, status, message = "UNAUTHORIZED", 401, "authentication required"


class Denied(RegistryError):
    code, status, message = "DENIED", 403, "requested access to the resource is denied"


class PreconditionFailed(Denied):
    status, message = 412, "the tag does not point to what the request expects"


class Unsupported(RegistryError):
    code, status, message = "UNSUPPORTED", 405, "the operation is unsupported"


class BadRequest(Unsupported):
    status, message = 400, "the request cannot be read"


class NoSuchRoute(Unsupported):
    status, message = 404, "no such route"


class RequestTimeout(Unsupported):
    status, message = 408, "the request did not come in time"


class TargetTooLong(Unsupported):
    status, message = 414, "the request's target is too long"


class HeadTooLarge(Unsupported):
    status, message = 431, "the request's head is too large"


class CodingUnsupported(Unsupported):
    status, message = 501, "the request's body is in a coding that is not undone here"


class TooManyRequests(RegistryError):
    code, status, message = "TOOMANYREQUESTS", 429, "too many requests"


class Unavailable(RegistryError):
    code, status, message = "UNAVAILABLE", 503, "service unavailable"


class Unknown(RegistryError):
    """Our own fault: a bug, or storage that answers with an error."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one readable line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class StorageError(Exception):
    """Base of what a storage driver raises; never an OSError."""


class StateError(Exception):
    """Base of what a state store raises; never an error of its client library."""
