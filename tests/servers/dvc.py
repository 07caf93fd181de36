"""The real clients: DVC, GTO and DVC Studio's own library, in an environment of their own."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from servers.process import ROOT

_PROGRAMS = ROOT / ".venv-dvc/bin"


@dataclass(frozen=True)
class Clients:
    """Runs the clients for somebody whose home is `home`, and who has nothing but `environ`."""

    home: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (_PROGRAMS / "dvc").exists():
            pytest.skip("DVC is not installed")

    def run(self, *command: str, cwd: Path) -> str:
        """What the command prints to its standard output. Raises AssertionError if it fails."""
        done = self.attempt(*command, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """The outcome of a command, whatever it is."""
        environ = {
            # Nothing of whoever runs the tests: no keys of a cloud, no configuration.
            "PATH": os.pathsep.join([str(_PROGRAMS), os.environ["PATH"]]),
            "HOME": str(self.home),
            "DVC_SITE_CACHE_DIR": str(self.home / "cache"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.home),
            "DVC_NO_ANALYTICS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            **{f"GIT_{who}_NAME": "Ada" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "ada@example.com" for who in ("AUTHOR", "COMMITTER")},
            **self.environ,
        }
        return subprocess.run(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
