"""What is found wrong with a pair: the site, what it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing about a pair: an "error" that makes its numbers wrong, a "warning" that may, or a "note" on speed."""

    site: str
    found: str
    fix: str
    level: Literal["error", "warning", "note"] = "error"

    def __str__(self) -> str:
        return f"{self.site}: {self.found}; {self.fix}"
