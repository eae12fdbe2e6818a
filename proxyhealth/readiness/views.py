"""The views ``/livez`` and ``/readyz``, for load balancers and Kubernetes."""

from collections.abc import Mapping

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.cache import add_never_cache_headers

from proxyhealth.access import endpoint
from proxyhealth.exceptions import APIError
from proxyhealth.readiness import parts
from proxyhealth.readiness.parts import Part


@endpoint("GET", public=lambda: True)
def livez(request: HttpRequest) -> HttpResponse:
    """Return 200: this process responds. Touch nothing else."""
    return _respond(200, {"status": "ok"})


@endpoint("GET", public=lambda: True)
def readyz(request: HttpRequest, results: Mapping[str, Part] | None = None) -> HttpResponse:
    """Return 200 if all required parts are ok, otherwise 503."""
    required = _parse_required(request)
    if results is None:
        results = parts.examine()
    if required is None:
        required = parts.required_parts()
    failed = {name for name, part in results.items() if not part.ok}
    status = "failed" if failed & required else "degraded" if failed else "ok"
    body = {name: _describe(part, name in required) for name, part in results.items()}
    return _respond(503 if status == "failed" else 200, {"status": status, "parts": body})


def _describe(part: Part, required: bool) -> dict[str, object]:
    message = {"message": part.message} if part.message else {}
    return {"ok": part.ok, "required": required, **part.facts, **message}


def _parse_required(request: HttpRequest) -> set[str] | None:
    """Return the names in the parameter ``require``, or None without it."""
    names = ", ".join(parts.NAMES)
    if unknown := sorted(set(request.GET) - {"require"}):
        raise APIError(400, "Bad query.", f"Unknown parameter {unknown[0]!r:.50}. Valid parameters: require.")
    if "require" not in request.GET:
        return None
    required = {name.strip() for text in request.GET.getlist("require") for name in text.split(",")}
    if not required <= set(parts.NAMES):
        raise APIError(400, "Bad query.", f"require must be a list of these, separated by commas: {names}.")
    return required


def _respond(status: int, body: dict[str, object]) -> HttpResponse:
    response = JsonResponse(body, status=status)
    add_never_cache_headers(response)
    # Django logs each 503 as an error, and may send it to the admins. The log has each change already.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
