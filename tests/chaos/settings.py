"""The project, whose prober trusts an authority of the test's."""

import os

from project.settings import *  # noqa: F403
from project.settings import PROXYHEALTH

PROXYHEALTH = {**PROXYHEALTH, "CA_BUNDLE": os.environ["CA_BUNDLE"]}
