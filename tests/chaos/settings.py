"""The project's settings, with a certificate authority of the test for the prober to trust."""

import os

from project.settings import *  # noqa: F403
from project.settings import PROXYHEALTH

PROXYHEALTH = {**PROXYHEALTH, "CA_BUNDLE": os.environ["CA_BUNDLE"]}
