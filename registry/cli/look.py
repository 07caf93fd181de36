"""The verbs of whoever wants to know what there is: ls, versions, history and explain."""

from collections.abc import Mapping
from typing import Any

import click

from registry.cli.fetch import (
    asking,
    name_argument,
    repo_argument,
    stage_option,
    version_option,
)
from registry.cli.terminal import json_option, print_json, print_table, printable
from registry.domain import ArtifactName

Row = Mapping[str, Any]


@click.command()
@repo_argument
@click.option("--search", metavar="TEXT", help="Only those whose name or description holds this.")
@click.option("--type", "kind", metavar="TYPE", help="Only those of this type, such as model.")
@click.option("--label", metavar="LABEL", help="Only those with this label.")
@click.option("--stage", metavar="S", help="Only those with something in this stage.")
@json_option
def ls(
    *,
    repo: str,
    search: str | None,
    kind: str | None,
    label: str | None,
    stage: str | None,
    as_json: bool,
) -> None:
    """List the artifacts of a repository: the latest version of each, and what is in its stages."""
    query = {"search": search, "type": kind, "label": label, "stage": stage}
    rows = _all(repo, "", "artifacts", query)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "TYPE", "LATEST", "STAGES", "UPDATED", "DESCRIPTION"),
        [
            (
                row["name"],
                row["type"] or "-",
                "deprecated" if row["deprecated"] else (row["latest"] or {}).get("version") or "-",
                ",".join(f"{stage}={_held(at)}" for stage, at in row["stages"].items()) or "-",
                row["updated"] or "-",
                printable((row["description"] or "").partition("\n")[0][:60]),
            )
            for row in rows
        ],
    )


@click.command()
@repo_argument
@name_argument
@json_option
def versions(repo: str, name: str, as_json: bool) -> None:
    """List the registered versions of an artifact, the greatest first."""
    rows = _all(repo, f"{_route(name)}/versions", "versions", {})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("VERSION", "REVISION", "REGISTERED", "STAGES"),
        [
            (
                row["version"],
                row["revision"][:10],
                row["registered"] or "-",
                ",".join(row["stages"]) or "-",
            )
            for row in rows
        ],
    )


@click.command()
@repo_argument
@name_argument
@json_option
def history(repo: str, name: str, as_json: bool) -> None:
    """List all that happened to an artifact, the latest first: who did what, when, and why."""
    rows = _all(repo, f"{_route(name)}/history", "events", {})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("TIME", "WHAT", "OF", "REVISION", "WHO", "MESSAGE"),
        [
            (
                row["time"] or "-",
                row["action"],
                row["version"] or row["stage"] or "-",
                row["revision"][:10],
                printable(row["who"] or "-"),
                printable((row["message"] or "").partition("\n")[0][:60]),
            )
            for row in rows
        ],
    )


@click.command()
@repo_argument
@name_argument
@version_option
@stage_option
@json_option
def explain(repo: str, name: str, version: str | None, stage: str | None, as_json: bool) -> None:
    """Explain what a version, a stage or the latest version means: each tag, and why it won or
    lost.
    """
    query = _given({"version": version, "stage": stage})
    with asking(repo) as (inquiry, _):
        found: Row = inquiry.look(f"{_route(name)}/explain", query)
    if as_json:
        print_json(found)
        return
    answer = found["answer"]
    if answer:
        click.echo(f"{answer['version'] or 'a commit without a version'} at {answer['revision']}")
    else:
        click.echo(printable(found["problem"] or "nothing"))
    print_table(
        ("", "TAG", "REVISION", "TIME", "WHY"),
        [
            (
                "won" if row["won"] else "lost",
                row["tag"],
                (row["revision"] or "-")[:10],
                row["time"] or "-",
                printable(row["reason"] or ""),
            )
            for row in found["considered"]
        ],
    )


def _all(repo: str, what: str, key: str, query: Mapping[str, str | None]) -> list[Row]:
    """Every row of a list, page by page."""
    asked = _given(query)
    rows: list[Row] = []
    with asking(repo) as (inquiry, _):
        while True:
            page: Row = inquiry.look(what, asked)
            rows += page.get(key) or []
            following = page.get("next")
            if not following:
                return rows
            asked["after"] = str(following)


def _given(query: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def _route(name: str) -> str:
    """The artifact in a route. Raises InvalidRequest for what is no name."""
    return "/" + str(ArtifactName.parse(name)).replace("/", "~")


def _held(at: Row) -> str:
    version: str = at["version"] or at["revision"][:10]
    return version
