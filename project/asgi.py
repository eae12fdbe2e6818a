import os
import warnings

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# Each request has a thread of its own. A connection that it keeps would only stay open.
os.environ.setdefault("CONN_MAX_AGE", "0")
# WhiteNoise sends static files from an iterator. They are small.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

application = get_asgi_application()
