"""The demo's well-known password, refused outside of the demo, and error pages without passwords."""

import logging
import os
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import ModelBackend
from django.views.debug import SafeExceptionReporterFilter

from project.startup import DEMO_MODE, DEMO_PASSWORD
from proxyhealth.utils import without_passwords

logger = logging.getLogger(__name__)


class SignIn(ModelBackend):
    """Django's users. A deployment on a database that a demo has filled refuses the demo's password."""

    def authenticate(self, request: Any, username: Any = None, password: Any = None, **kwargs: Any) -> Any:
        if password == DEMO_PASSWORD and not os.environ.get(DEMO_MODE):
            logger.warning(
                "the password of the demo is refused outside of `make run`. Set another one with "
                "manage.py changepassword"
            )
            return None
        return super().authenticate(request, username, password, **kwargs)

    async def aauthenticate(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return await sync_to_async(self.authenticate)(request, *args, **kwargs)


class ReportFilter(SafeExceptionReporterFilter):
    """A filter that also removes the passwords within URLs, such as LOCATION of a cache."""

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        return without_passwords(cleansed) if isinstance(cleansed, str) else cleansed
