"""Estimators and objectives against known answers, on the machine and device at hand: the command `pvae selfcheck`."""

from pvae.selfcheck.rows import Row as Row

