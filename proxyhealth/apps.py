from django.apps import AppConfig
from django.core import checks
from django.utils.translation import gettext_lazy as _


class ProxyHealthConfig(AppConfig):
    name = "proxyhealth"
    verbose_name = _("Proxy health")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from prometheus_client import REGISTRY

        from proxyhealth import receivers, tasks  # noqa: F401  importing them connects their receivers
        from proxyhealth.checks import check_celery, check_deployment, check_isolation, check_settings
        from proxyhealth.metrics.collector import collector
        from proxyhealth.models.names import translate_names
        from proxyhealth.notifications.mail import check_email

        translate_names(self.get_models())
        checks.register(check_settings)
        checks.register(check_celery)
        checks.register(check_isolation)
        checks.register(check_deployment, checks.Tags.security, deploy=True)
        checks.register(check_email, deploy=True)
        REGISTRY.register(collector)
