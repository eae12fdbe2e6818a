"""The demo's well-known password, refused outside of the demo, and error pages without passwords."""

import logging
import os
from typing import Any

from django.core.exceptions import PermissionDenied
from django.views.debug import SafeExceptionReporterFilter

from project.startup import DEMO_MODE, DEMO_PASSWORD
from proxyhealth.texts import without_passwords

logger = logging.getLogger(__name__)


class RefuseDemoPassword:
    """An authentication backend with no users. It ends the sign-in with the password of the demo.

    A deployment may use a database that a demo has filled.
    """

    def authenticate(self, request: Any, password: Any = None, **kwargs: Any) -> None:
        if password == DEMO_PASSWORD and not os.environ.get(DEMO_MODE):
            logger.warning(
                "the password of the demo is refused outside of `make run`. Set another one with "
                "manage.py changepassword"
            )
            raise PermissionDenied

    async def aauthenticate(self, request: Any, **kwargs: Any) -> None:
        self.authenticate(request, **kwargs)


class ReportFilter(SafeExceptionReporterFilter):
    """A filter that also removes the passwords within URLs, such as LOCATION of a cache."""

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        return without_passwords(cleansed) if isinstance(cleansed, str) else cleansed
