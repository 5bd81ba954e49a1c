"""Every problem that the API responds with, by HTTP status. Plain exceptions: no framework, no database.

`code` is the class name in snake_case unless the instance names a finer one; `type` is `/problems/` and the code in
kebab-case, which `app/web/problems.toml` explains. Any other exception is a bug: it becomes a 500 that names only the
request.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, NamedTuple, Self

from ml.formats.errors import DatasetFormatError, printable


class Fault(NamedTuple):
    """One thing that is wrong with a request.

    Attributes:
        pointer: JSON Pointer of the field, or the name of a file, or a row of a table.
        code: What kind of fault it is, in snake_case.
        detail: A sentence for the client.
    """

    pointer: str
    code: str
    detail: str


class Problem(Exception):
    """An error response in the terms of RFC 9457.

    Args:
        detail: What is wrong with this request, a sentence for the client.
        code: A finer code than that of the class, in snake_case.
        status: An HTTP status other than that of the class.
        errors: What is wrong with single fields, files or rows.
        retry_after_s: Seconds of the Retry-After header.
        headers: Further headers of the response.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        errors: list[Fault] | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or snake(type(self).__name__)
        self.http_status = status or self.status
        self.errors = errors or []
        self.headers = dict(headers or {})
        self.members: dict[str, Any] = {}  # extension members of this problem
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    @property
    def type(self) -> str:
        return type_of(self.code)


def type_of(code: str) -> str:
    """The `type` of the problem document for a code in snake_case."""
    return "/problems/" + code.replace("_", "-")


def sentence(text: str) -> str:
    """A detail as a sentence for the client: with a capital, and a full stop unless it ends in a mark already."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class Malformed(Problem):
    status, title = 400, "The request cannot be read"


class HostNotAllowed(Problem):
    status, title = 400, "Unknown host"


class LoginExpired(Problem):
    status, title = 400, "The login has expired"


class Unauthenticated(Problem):
    status, title = 401, "A valid API key is required"


class Forbidden(Problem):
    status, title = 403, "This key may not do that"


class CrossSite(Problem):
    status, title = 403, "Cross-site requests are refused"


class CsrfTokenRequired(Problem):
    status, title = 403, "A CSRF token is required"


class LoginDenied(Problem):
    status, title = 403, "The provider refused the login"


class LoginNotVerified(Problem):
    status, title = 403, "The login could not be verified"


class NoAccess(Problem):
    status, title = 403, "This account has no access"


class RemoteImagesDisabled(Problem):
    status, title = 403, "Images are never fetched by URL"


class NotFound(Problem):
    status, title = 404, "Not found"


class DatasetNotFound(NotFound):
    title = "No such data set"


class LabelVersionNotFound(NotFound):
    title = "No such label version"


class ImageNotFound(NotFound):
    title = "No such image"


class JobNotFound(NotFound):
    title = "No such job"


class ModelNotFound(NotFound):
    title = "No such model"


class AliasNotFound(NotFound):
    title = "No such alias"


class WeightsNotFound(NotFound):
    title = "No such weights"


class UploadNotFound(NotFound):
    title = "No such upload"


class KeyNotFound(NotFound):
    title = "No such API key"


class ArtifactNotFound(NotFound):
    title = "No such artifact"


class MethodNotAllowed(Problem):
    status, title = 405, "Method not allowed"


class BodyTooSlow(Problem):
    status, title = 408, "The body arrives too slowly"


class JobFinished(Problem):
    status, title = 409, "The job has ended"


class JobNotFinished(Problem):
    status, title = 409, "The job has not ended"


class InUse(Problem):
    status, title = 409, "In use"


class NotReady(Problem):
    status, title = 409, "Not ready"


class RequestInFlight(Problem):
    status, title = 409, "The same request is still being answered"


class LabelsMovedOn(Problem):
    status, title = 409, "Labels have changed meanwhile"


class OffsetConflict(Problem):
    status, title = 409, "The upload is at another offset"


class PreconditionFailed(Problem):
    status, title = 412, "There is a newer version"


class TusVersionUnsupported(Problem):
    status, title = 412, "Unsupported version of tus"


class TooLarge(Problem):
    status, title = 413, "Too large"


class UnsupportedMediaType(Problem):
    status, title = 415, "Unsupported media type"


class RangeNotSatisfiable(Problem):
    status, title = 416, "Range not satisfiable"


class InvalidRequest(Problem):
    status, title = 422, "The request is not valid"


class ArchiveRejected(Problem):
    """A data set that cannot be used. `code` says why: unsafe_entry_name, ambiguous_archive and so on."""

    status, title = 422, "The archive was rejected"

    @classmethod
    def from_format_error(cls, error: DatasetFormatError) -> Self:
        """The problem for an error of `ml.formats`.

        Where naming a column is the way out, the members `columns` and `sample_row` hold the columns of the table and
        its first row, so that a client can offer a choice.
        """
        errors = [Fault(printable(error.location), error.code, error.detail)] if error.location is not None else []
        status = 413 if error.code in ("archive_too_large", "table_too_large") else None
        problem = cls(error.detail, code=error.code, status=status, errors=errors)
        if error.columns:
            problem.members = {"columns": list(error.columns), "sample_row": error.sample_row}
        return problem


class WeightsRejected(Problem):
    status, title = 422, "The weights were rejected"


class UndecodableInput(Problem):
    status, title = 422, "The image cannot be read"


class IdempotencyMismatch(Problem):
    status, title = 422, "This idempotency key was used for another request"


class UploadLocked(Problem):
    status, title = 423, "The upload is in use"


class QueueFull(Problem):
    status, title = 429, "The queue is full"


class Overloaded(Problem):
    status, title = 429, "Too many predictions are waiting"


class TooManyEventStreams(Problem):
    status, title = 429, "Too many event streams are open"


class TooManyExports(Problem):
    status, title = 429, "Too many exports are being downloaded"


class QuotaExceeded(Problem):
    """A limit of the caller's own, as draft-ietf-httpapi-ratelimit-headers describes it: `violated-policies` names it.

    Args:
        policy: The name of the limit.
        detail: A sentence for the client.
        retry_after_s: Seconds of the Retry-After header.
    """

    status, title = 429, "The quota of this key is used up"

    def __init__(self, policy: str, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.members = {"violated-policies": [policy]}


class RateLimited(QuotaExceeded):
    title = "Too many requests"


class ChecksumMismatch(Problem):
    status, title = 460, "The checksum is another"  # a status of tus 1.0.0


class DatabaseUnavailable(Problem):
    status, title = 503, "The database cannot be reached"


class InferenceUnavailable(Problem):
    status, title = 503, "The inference process cannot be reached"


class ModelUnavailable(Problem):
    status, title = 503, "The model's files cannot be read"


class DatasetUnavailable(Problem):
    status, title = 503, "The data set's files cannot be read"

    @classmethod
    def missing_files(cls) -> Self:
        """Files are gone, for good or because the data set is being deleted, or are damaged."""
        return cls("Files of the data set are missing or damaged.", retry_after_s=10)


class StorageUnavailable(Problem):
    status, title = 503, "The object store cannot be reached"


class LoginUnavailable(Problem):
    status, title = 503, "The login provider cannot be reached"


class DeadlineExceeded(Problem):
    status, title = 504, "The prediction took too long"


class InsufficientStorage(Problem):
    status, title = 507, "Not enough disk space"
