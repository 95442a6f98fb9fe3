"""Python runs this first in every process of a test run that has this folder on its path."""

import hydra_audit

hydra_audit.install()
