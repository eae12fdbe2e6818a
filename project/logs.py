"""The logs of all processes on standard error, as text or as JSON."""

from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS


def logging_config(formatter: str, level: str) -> dict[str, Any]:
    """Return ``LOGGING``. The loggers of Django and of the servers have handlers of their own otherwise."""
    # The server in front has the log of the requests.
    levels = {"gunicorn.access": "WARNING", "uvicorn.access": "WARNING"}
    names = ("django", "gunicorn.error", "uvicorn", *levels)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"fields": {"()": "proxyhealth.logs.AddFields"}},
        "formatters": {
            "text": {
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "datefmt": "%Y-%m-%dT%H:%M:%S%z",
            },
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "fmt": "%(levelname)s %(name)s %(message)s %(process)d",
                "rename_fields": {"levelname": "level", "name": "logger"},
                "timestamp": "time",
                "reserved_attrs": [*RESERVED_ATTRS, "color_message"],  # of uvicorn, for terminals
            },
        },
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": formatter, "filters": ["fields"]}
        },
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            name: {"handlers": [], "propagate": True, "level": levels.get(name, "NOTSET")} for name in names
        },
    }
