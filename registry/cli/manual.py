"""The manual of the command line, made from the commands: `make docs` writes docs/cli.md."""

import inspect
from collections.abc import Iterator

import click

from registry.cli import cli
from registry.cli.failures import CODES

_OPENING = """\
# The command line

This page is made by `make docs` from the commands themselves.

`registry get REPO NAME` downloads a model. With `REGISTRY_URL` and `REGISTRY_TOKEN` set (or
`DVC_STUDIO_URL` and `DVC_STUDIO_TOKEN`) the service is asked, and REPO is what it calls the
repository: a name or a URL. Without them, or when REPO is a path, the answer comes straight from
Git and the store, with your own access to both: your Git configuration, and the credentials that
the libraries of the stores find. Where those are sent is for you to say, not for the repository
([ADR 9](adr/0009-own-keys.md)).

```console
$ export REGISTRY_URL=https://registry.example REGISTRY_TOKEN=reg_...
$ registry get team/models classifier --stage prod -o /srv/models
$ registry lock team/models classifier#prod tokenizer@v1.0.0   # registry.lock, to be committed
$ registry get --locked -o /srv/models                         # exactly that, whatever prod is now
$ registry verify /srv/models --receipt registry.lock
```

A file is in its place whole and checked against its MD5, or not at all. What breaks off is gone on
with by the next run. Nothing outside of the target is written, and another file that is there
already is replaced only with `--force`. It runs on Linux and macOS, and in Windows' WSL.

## Environment

| variable | meaning |
|---|---|
| `REGISTRY_URL`, `DVC_STUDIO_URL` | the service to ask |
| `REGISTRY_TOKEN`, `DVC_STUDIO_TOKEN` | a token for it; never an argument, which others could see |
| `REGISTRY_CACHE_DIR` | mirrors and manifests of the user; can be deleted at any time |
| `REGISTRY_CONFIG` | the configuration of a service, for the verbs of whoever runs it |
| `HTTP_PROXY` (in small letters), `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | as for curl |
| `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` | certificates to trust instead of the system's |
| `AWS_PROFILE`, `AWS_REGION`, `AWS_DEFAULT_REGION` | without a service: keys and region of S3 |
| `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | without a service: another S3 than AWS |
| `AZURE_STORAGE_CONNECTION_STRING` | without a service: the account of Azure, and its key |
| `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT` | the account alone: with your identity |
| `DVC_GLOBAL_CONFIG_DIR`, `DVC_SYSTEM_CONFIG_DIR` | where DVC's own configuration is |
| `NO_COLOR` | no colours, on a terminal neither |

## Exit codes

A failure is one line on standard error that says what is wrong and what to do next; with `--json` a
JSON object of one line, `{"error": ..., "exit_code": ...}`, but for a wrong use of the command (2)
and for Ctrl-C (130).

| code | meaning |
|---|---|
"""
_COMPLETION = """
## Completion

```console
$ eval "$(_REGISTRY_COMPLETE=bash_source registry)"   # bash; zsh_source for zsh
$ _REGISTRY_COMPLETE=fish_source registry | source    # fish
```

`registry --help` lists all commands; every command that prints a table prints JSON with `--json`.
"""


def manual() -> str:
    """The whole page."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in CODES.items())
    return _OPENING + codes + _COMPLETION + "".join(_commands(cli, "registry"))


def _commands(group: click.Group, path: str) -> Iterator[str]:
    context = click.Context(group, info_name=path, **cli.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield _command(command, f"{path} {name}")


def _command(command: click.Command, path: str) -> str:
    # As it is when it is run: a command keeps the names of --help that it is asked for first.
    context = click.Context(command, info_name=path, **cli.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "")
    options = [it for it in command.params if isinstance(it, click.Option)]
    rows = "".join(f"| {_named(it, context)} | {_meaning(it, context)} |\n" for it in options)
    table = f"\n| option | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"\n## `{path}`\n\n`{path} {usage}`\n\n{text}\n{table}"


def _named(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    return (
        names if option.is_flag else f"{names} {option.make_metavar(context)}".replace("|", "\\|")
    )


def _meaning(option: click.Option, context: click.Context) -> str:
    default = option.get_default(context)
    shown = f" Default: `{_shown(default)}`." if option.show_default and default is not None else ""
    several = (
        " May be given more than once." if option.multiple and "once" not in _help(option) else ""
    )
    required = " Required." if option.required else ""
    return f"{_help(option)}{required}{several}{shown}"


def _help(option: click.Option) -> str:
    return (option.help or "").replace("|", "\\|")


def _shown(default: object) -> str:
    return ", ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


if __name__ == "__main__":
    click.echo(manual(), nl=False)
