from project.settings import *  # noqa: F403

CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "yaml"
CELERY_ACCEPT_CONTENT = ["json", "yaml"]
