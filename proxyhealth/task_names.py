"""The names of the Celery tasks, for all code that sends, schedules or counts them."""

import enum


class TaskName(enum.StrEnum):
    """The name of a task in messages. Celery derives it from the module and the function."""

    CHECK_ALL = "proxyhealth.tasks.check_all"
    CHECK_SHARD = "proxyhealth.tasks.check_shard"
    CHECK_PROXIES = "proxyhealth.tasks.check_proxies"
    FIRST_ROUND = "proxyhealth.tasks.first_round"
    FINISH_ROUND = "proxyhealth.tasks.finish_round"
    FINISH_BROKEN_ROUND = "proxyhealth.tasks.finish_broken_round"
    RECHECK = "proxyhealth.tasks.recheck"
    RECORD_HISTORY = "proxyhealth.tasks.record_history"
    SEND_SIGNALS = "proxyhealth.tasks.send_signals"
    DELIVER = "proxyhealth.tasks.deliver"
    PRUNE_HISTORY = "proxyhealth.tasks.prune_history"

    @property
    def short(self) -> str:
        """The name of the task in metrics."""
        return self.rpartition(".")[2]
