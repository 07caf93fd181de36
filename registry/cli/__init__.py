"""The `registry` command: thin verbs over the same core as the service.

A verb is a function of a module of this package, which is imported when the verb is used: nobody
who asks for help waits for a database's library.

What the exit codes mean stands in `failures`.
"""

import gc
import json
import os
import sys
from importlib import import_module
from typing import Any

import click

from registry import __version__
from registry.errors import RegistryError

VERBS = {
    "get": (
        "fetch",
        "Download an artifact: every file below --out, under its path in the repository.",
    ),
    "show": ("fetch", "Show what a version, a stage or the latest version means: its receipt."),
    "ls": (
        "look",
        "List the artifacts of a repository: the latest version of each, and what is in its "
        "stages.",
    ),
    "versions": ("look", "List the registered versions of an artifact, the greatest first."),
    "history": (
        "look",
        "List all that happened to an artifact, the latest first: who did what, when, and why.",
    ),
    "explain": (
        "look",
        "Explain what a version, a stage or the latest version means: each tag, and why it won or "
        "lost.",
    ),
    "urls": ("fetch", "Print a link for each file, good for an hour for whoever has it."),
    "lock": ("fetch", "Write down what selectors mean now, for `registry get --locked`."),
    "verify": (
        "fetch",
        "Check the files of a directory against a receipt. "
        "Exit code 1 if one is not as it should be.",
    ),
    "serve": ("operate", "Start the service: gunicorn on the configuration."),
    "check": (
        "operate",
        "Validate the configuration, reach what it names, and get a byte of every location.",
    ),
    "token": ("tokens", "Create, list and revoke the tokens of pipelines and scripts."),
    "tags": (
        "operate",
        "List the version tags that were moved or deleted, as the mirrors of this machine saw it.",
    ),
    "audit": ("audit", "Read and verify the audit log: who was given links to what."),
    "database": ("database", "Look after the database."),
    "demo": ("operate", "Start the service on a small embedded demo, and print commands to try."),
}
"""Verb -> the module of this package that holds it under its name, and what its help says first."""


class Verbs(click.Group):
    """The verbs of `VERBS`, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """Their names, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb of this name, None when there is none."""
        if cmd_name not in VERBS:
            return None
        module: Any = import_module(f"registry.cli.{VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Does what the verb does. Ctrl-C is no failure of what was looked at."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Lists the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="registry")
def cli() -> None:
    """A model registry that lives in Git: one-hour download links for one token."""


def main() -> None:
    """The entry point: a failure of ours is one line on stderr that says what to do. With --json it
    is an object.
    """
    gc.set_threshold(50_000)  # what is imported is no garbage
    color = False if os.environ.get("NO_COLOR") else None
    try:
        cli(color=color)
    except RegistryError as error:
        from registry.cli import failures  # noqa: PLC0415 mostly there are none

        code, said = failures.code_of(error), failures.line_of(error)
        line = f"{click.style('Error:', fg='red')} {said}"
        if "--json" in sys.argv[1:]:
            line = json.dumps({"error": said, "exit_code": code}, ensure_ascii=False)
        click.echo(line, err=True, color=color)
        sys.exit(code)
    finally:
        gc.freeze()  # nobody needs what is left to be searched for garbage
