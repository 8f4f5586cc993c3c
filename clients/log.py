"""The client's logger. It has the name of the package: queue_service where it is installed."""

import logging

log = logging.getLogger(__package__)
