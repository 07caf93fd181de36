"""MLflow's real clients, today's and the first ones, in environments of their own."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servers.process import ROOT

PYTHON = ROOT / ".venv-mlflow/bin/python"
EARLY = ROOT / ".venv-mlflow-early"


@dataclass(frozen=True)
class Client:
    """Runs scripts for somebody whose home is `home`, and who has nothing but `environ`."""

    home: Path
    environ: Mapping[str, str]
    python: Path = PYTHON

    def __post_init__(self) -> None:
        if not self.python.exists():
            pytest.skip("MLflow is not installed")

    def run(self, script: str) -> Any:
        """What the script has in `found` at its end. Raises AssertionError if it fails."""
        ending = "\nimport json\nprint('FOUND', json.dumps(found))\n"
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", script + ending],
            cwd=self.home,
            env={
                "HOME": str(self.home),
                "PATH": "/usr/bin:/bin",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "GIT_PYTHON_REFRESH": "quiet",
                **self.environ,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        return json.loads(lines[-1].removeprefix("FOUND "))


def early(home: Path, environ: Mapping[str, str], version: str) -> Client:
    """One of the first clients: 1.0.0, or an older one that lies in a directory of its name."""
    path = {"PYTHONPATH": str(EARLY / version)}
    return Client(home, {**path, **environ}, EARLY / "bin/python")
