"""What is found wrong with a pair: the site, what it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pvae.support.refusals import ContractError

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing about a pair: an "error" that makes its numbers wrong, a "warning" that may, or a "note" on speed."""

    site: str
    found: str
    fix: str
    level: Literal["error", "warning", "note"] = "error"

    @classmethod
    def of(cls, site: str, error: ValueError, level: Literal["error", "warning", "note"] = "error") -> Finding:
        """What an error says of a site."""
        if isinstance(error, ContractError):
            return cls(site, error.found, error.fix, level)
        return cls(site, str(error), "", level)

    def __str__(self) -> str:
        return f"{self.site}: {self.found}" + (f"; {self.fix}" if self.fix else "")
