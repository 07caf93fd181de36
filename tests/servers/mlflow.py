"""MLflow's real client, in an environment of its own."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servers.process import ROOT

PYTHON = ROOT / ".venv-mlflow/bin/python"


@dataclass(frozen=True)
class Client:
    """Runs scripts for somebody whose home is `home`, and who has nothing but `environ`."""

    home: Path
    environ: Mapping[str, str]

    def __post_init__(self) -> None:
        if not PYTHON.exists():
            pytest.skip("MLflow is not installed")

    def run(self, script: str) -> Any:
        """What the script has in `found` at its end. Raises AssertionError if it fails."""
        ending = "\nimport json\nprint('FOUND', json.dumps(found))\n"
        done = subprocess.run(
            [PYTHON, "-W", "ignore", "-c", script + ending],
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
