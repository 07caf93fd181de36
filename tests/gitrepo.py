"""Makes real Git repositories for tests: the same commit ids on every machine and every day."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from registry.domain import Revision

START = 1_700_000_000
"""The time of the first commit, in Unix seconds. Every commit and tag is one second later."""

FILE, EXECUTABLE, LINK = "100644", "100755", "120000"


class GitRepository:
    """A bare repository at `path`, to be used as an origin: `str(origin.path)` is its URL.

    >>> origin = GitRepository(tmp_path / "origin.git")
    >>> origin.commit({"dvc.yaml": "artifacts: {}"})
    >>> origin.tag("model@v1.0.0")
    """

    def __init__(self, path: Path, object_format: str = "sha1") -> None:
        self.path = path
        self.time = START
        path.parent.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--bare", "-b", "main", f"--object-format={object_format}")

    def git(self, *arguments: str, given: str | bytes = b"", time: int | None = None) -> str:
        """Runs git on the repository, away from the configuration of whoever runs the tests."""
        when = f"@{self.time if time is None else time} +0000"
        who = {"NAME": "Ada", "EMAIL": "ada@example.com", "DATE": when}
        people = {f"GIT_{role}_{key}": who[key] for role in ("AUTHOR", "COMMITTER") for key in who}
        clean = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }
        done = subprocess.run(
            ["git", f"--git-dir={self.path}", *arguments],
            input=given.encode() if isinstance(given, str) else given,
            stdout=subprocess.PIPE,
            check=True,
            env={**clean, **people},
        )
        return done.stdout.decode().strip()

    def commit(
        self,
        files: Mapping[str, str | bytes | tuple[str, str | bytes] | None],
        branch: str = "main",
        orphan: bool = False,
    ) -> Revision:
        """Adds a commit to a branch that changes `files`: path -> text, (mode, text), or None to
        remove it.
        """
        self.time += 1
        ref = f"refs/heads/{branch}"
        known = not orphan and ref in self.git("for-each-ref", "--format=%(refname)").split()
        lines = [f"commit {ref}", f"committer Ada <ada@example.com> {self.time} +0000"]
        stream = "\n".join(lines).encode() + b"\n" + _data(f"Commit {self.time - START}")
        stream += f"from {ref}^0\n".encode() if known else b""
        for path, content in files.items():
            if content is None:
                stream += f"D {path}\n".encode()
                continue
            mode, text = content if isinstance(content, tuple) else (FILE, content)
            stream += f"M {mode} inline {path}\n".encode() + _data(text)
        force = ("--force",) if orphan else ()
        self.git("fast-import", "--quiet", *force, given=stream)
        return self.head(branch)

    def head(self, branch: str = "main") -> Revision:
        """The tip of a branch."""
        return Revision(self.git("rev-parse", f"refs/heads/{branch}"))

    def tag(
        self,
        name: str,
        target: str | None = None,
        *,
        time: int | None = None,
        lightweight: bool = False,
    ) -> str:
        """Tags any object, the tip of `main` by default, with a new tag or in place of an old one.
        `time` is the tagger's, in Unix seconds. Returns the id of the tag object.
        """
        self.time += 1
        kind = () if lightweight else ("-a", "-m", f"Tag {name}")
        self.git("tag", "--force", *kind, "--", name, target or self.head(), time=time)
        return self.git("rev-parse", f"refs/tags/{name}")

    def raw_tag(self, name: str, target: str, *headers: str, inside: str | None = None) -> str:
        """An annotated tag of a commit with just these headers beyond the usual three; none means
        that there is no tagger. `inside` is the name that the tag object itself bears.
        """
        lines = [f"object {target}", "type commit", f"tag {inside or name}", *headers]
        text = "\n".join(lines) + "\n\nBy hand\n"
        oid = self.git("hash-object", "-t", "tag", "-w", "--stdin", "--literally", given=text)
        self.git("update-ref", f"refs/tags/{name}", oid)
        return oid

    def delete_tag(self, name: str) -> None:
        """Removes a tag."""
        self.git("tag", "-d", "--", name)


def _data(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return b"data %d\n%b\n" % (len(raw), raw)
