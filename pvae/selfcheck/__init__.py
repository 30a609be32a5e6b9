"""Estimators and objectives against known answers, on the machine and device at hand: the command `pvae selfcheck`."""

from pvae.selfcheck.rows import Row as Row
from pvae.selfcheck.runner import run as run
from pvae.selfcheck.table import show as show
from pvae.selfcheck.table import summary as summary
