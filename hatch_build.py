"""Refuses to build a package that would lack its models or guides."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LinkedFoldersHook(BuildHookInterface[Any]):
    """Without symbolic links git checks out pvae/models as a text file, and the wheel would be broken."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Stop the build unless both linked folders are there."""
        for name in ("models", "guides"):
            if not Path(self.root, "pvae", name).is_dir():
                self.app.abort(
                    f"pvae/{name} must be a symbolic link to ../{name} but is no directory here: "
                    "clone again where symbolic links work, with `git clone -c core.symlinks=true`."
                )
