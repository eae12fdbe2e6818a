"""A project that exists: users with e-mail addresses, a cache, periodic tasks, and a route for every path."""

FILES = {
    "accounts/__init__.py": "",
    "accounts/migrations/__init__.py": "",
    "accounts/models.py": """
from django.contrib.auth.base_user import BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.db import models


class Manager(BaseUserManager):
    def create_superuser(self, email, password):
        user = self.model(email=email, is_staff=True, is_superuser=True)
        user.set_password(password)
        user.save()
        return user


class Person(AbstractUser):
    username = None
    email = models.EmailField(unique=True)
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = []
    objects = Manager()
""",
    "accounts/tasks.py": """
from celery import shared_task
from django.core.cache import cache


@shared_task
def tick():
    cache.add("ticks", 0, None)
    cache.incr("ticks")
""",
    "host/celery.py": """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "host.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "host/__init__.py": """
from .celery import app

__all__ = ("app",)
""",
}

SETTINGS = """
import os

INSTALLED_APPS = (*INSTALLED_APPS, "accounts")
AUTH_USER_MODEL = "accounts.Person"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ["SHOP_REDIS_URL"] + "/1",
        "KEY_PREFIX": "shop",
        "TIMEOUT": 7200,
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
CELERY_BROKER_URL = os.environ["SHOP_REDIS_URL"] + "/0"
CELERY_TASK_ROUTES = {"accounts.tasks.*": {"queue": "accounts"}}
CELERY_BEAT_SCHEDULE = {"tick": {"task": "accounts.tasks.tick", "schedule": 1.0}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 8
CELERY_TASK_SERIALIZER = "json"
"""

URLS = """
from django.core.cache import cache
from django.http import HttpResponse
from django.urls import re_path

urlpatterns += [
    path("", lambda request: HttpResponse("the shop")),
    path("ticks", lambda request: HttpResponse(cache.get("ticks"))),
    path("metrics", lambda request: HttpResponse("metrics of the shop")),
    path("api/v2/regions", lambda request: HttpResponse("regions of the shop")),
    re_path("", lambda request: HttpResponse(f"page {request.path}")),
]
"""


def create(reader):
    """Write the project, and fill its database and its cache."""
    reader.enter("python -m django startproject host .")
    for name, text in FILES.items():
        path = reader.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, text in {"settings.py": SETTINGS, "urls.py": URLS}.items():
        with (reader.folder / "host" / name).open("a") as file:
            file.write(text)
    reader.enter("python manage.py makemigrations -v0 accounts && python manage.py migrate -v0")
    reader.shell(
        "from django.core.cache import cache\n"
        "from accounts.models import Person\n"
        "cache.set('kept', 'from before')\n"
        "Person.objects.create_superuser('ada@example.com', 'a long password')"
    )
