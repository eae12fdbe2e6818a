"""The settings of a small project whose cache and broker do not exist."""

SECRET_KEY = "a key for tests"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "proxyhealth",
]
MIDDLEWARE = [
    "proxyhealth.middleware.ProxyHostsMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "live.sqlite3",
        "TEST": {"MIGRATE": False},  # create the tables without migrations, which takes less time
    }
}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://192.0.2.1/0"}
}
CELERY_BROKER_URL = "redis://192.0.2.1/0"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
PROXYHEALTH = {"PUBLIC_REGIONS": True}
STATIC_URL = "static/"
USE_TZ = True
