"""The command line as a whole: quick to answer, and as docs/cli.md has it."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from runstream.gateway import cli
from runstream.gateway.commands.exits import MEANINGS, Exit
from tests.support.processes import python, runstream
from tests.support.services import SOURCE

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SLOW = {"aiohttp", "httpx", "msgspec", "nats", "pydantic", "rich", "structlog", "uvloop"}
"""What help does without."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its parser, as `keys new`."""
    group: Any = typer.main.get_command(cli.app)
    for name in cli.COMMANDS:
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from ((f"{name} {below}", each) for below, each in command.commands.items())
        else:
            yield name, command


PARSERS = dict(commands())


def option_row(option: Any) -> str:
    """An option as the page has it: its names and its variable, its default, what it is for."""
    if option.param_type_name == "argument":
        return f"| `{option.name.upper()}` | | {option.help} |"
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    variable = f" (`{option.envvar}`)" if isinstance(option.envvar, str) else ""
    says, _, said = (
        option.help.removesuffix("]").partition(" [") if option.help.endswith("]") else (option.help, "", "")
    )
    default = said or ("" if option.default in {None, False} else str(option.default).removesuffix(".0"))
    return f"| {names}{variable} | {f'`{default}`' if default else ''} | {says} |".replace("|  |", "| |")


def section(name: str) -> str:
    """What the page says below a command's heading."""
    below = re.split(rf"^## `runstream {re.escape(name)}`$", PAGE, flags=re.MULTILINE)
    assert len(below) == 2, f"docs/cli.md has no section of `runstream {name}`"
    return re.split(r"^## ", below[1], flags=re.MULTILINE)[0]


def test_the_page_has_every_command_and_no_other() -> None:
    """In the order in which help lists them."""
    assert re.findall(r"^## `runstream (.*)`$", PAGE, flags=re.MULTILINE) == list(PARSERS)


@pytest.mark.parametrize("name", PARSERS)
def test_the_page_has_every_option_of_a_command(name: str) -> None:
    """With its names, its variable, its default and what it is for, as its help says it."""
    told = [option for option in PARSERS[name].params if option.name != "help" and not option.hidden]
    expected = [option_row(option) for option in told]
    found = [line for line in section(name).splitlines() if line.startswith(("| `", "| -"))]
    assert found == expected


def test_the_page_has_every_exit_code() -> None:
    """In one table, with its meaning; and each command says which are its own."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert [(int(code), says) for code, says in rows] == [(code.value, says) for code, says in MEANINGS.items()]
    for name, parser in PARSERS.items():
        assert parser.epilog.startswith("Exit codes: 0 "), name
        assert "2 the command was called wrongly" in parser.epilog, name


@pytest.mark.parametrize("name", ["tail", "runs", "replay", "publish", "cancel"])
def test_the_help_of_a_command_of_clients_has_every_exit_code(name: str) -> None:
    """A server may refuse anything, and whoever runs it interrupt it, or read no further."""
    for code, says in MEANINGS.items():
        assert f"{code.value} {says}" in PARSERS[name].epilog


@pytest.mark.parametrize("name", ["up", "gateway", "broker", "provision", "doctor", "keys revoke"])
def test_the_help_of_what_may_be_interrupted_says_so(name: str) -> None:
    """With the code; of what serves, also that it has ended well once it did."""
    assert f"130 {MEANINGS[Exit.INTERRUPTED]}" in PARSERS[name].epilog
    assert ("Ctrl-C is 0 once it serves." in PARSERS[name].epilog) is (name in {"up", "gateway", "broker"})


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_list_says_what_a_command_says_of_itself(name: str) -> None:
    """The list does not import the commands, and must not say something else of them."""
    group: Any = typer.main.get_command(cli.app)
    says = " ".join(group.get_command(None, name).help.split())
    listed = cli.COMMANDS[name].says
    assert says.startswith(listed)


def test_a_command_with_commands_lists_each_in_one_line() -> None:
    """Nothing of it is cut off, and it has no options of its own: completion is the whole command line's."""
    group: Any = typer.main.get_command(cli.app)
    keys = group.get_command(None, "keys")
    context = keys.make_context("keys", [], resilient_parsing=True)
    assert [option.name for option in keys.get_params(context)] == ["help"]
    for command in keys.commands.values():
        listed = command.get_short_help_str(limit=60)
        assert listed.endswith(".")
        assert not listed.endswith("...")


def imported(*args: str) -> set[str]:
    """The foreign modules that the command line imports to answer this."""
    code = f"""
import json, sys
from runstream.gateway.cli import main
sys.argv = ["runstream", *{args!r}]
try:
    main()
except SystemExit:
    pass
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run(python("-c", code), env=SOURCE, capture_output=True, check=True, timeout=30)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_waits_for_no_library() -> None:
    """A second of importing is what a broker needs, and not whoever forgot the name of a command."""
    assert not SLOW & imported("--help")


@pytest.mark.parametrize("name", ["tail", "runs", "replay", "publish", "cancel", "bench", "conformance"])
def test_commands_of_clients_import_nothing_of_the_broker(name: str) -> None:
    """They are for machines that have a URL and no NATS, and start quickly."""
    assert not {"httpx", "nats", "structlog", "uvloop"} & imported(name, "--help")


def test_no_option_takes_a_key() -> None:
    """What is on a command line is in the shell's history, and everybody's list of processes."""
    names = {name for parser in PARSERS.values() for option in parser.params for name in option.opts}
    assert not {name for name in names if re.search(r"token$|secret|password|--key$", name)}


def test_shells_can_complete_it() -> None:
    """Typer's completion knows the commands, their options, and the values of those that have few."""
    code = "from runstream.gateway.cli import app; app(prog_name='runstream')"
    for typed, expected in {"ta": "tail", "tail --af": "--after", "runs --status ca": "cancelled"}.items():
        asking = {"_RUNSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": f"runstream {typed}"}
        words = {"COMP_CWORD": str(len(typed.split()))}
        done = subprocess.run(
            python("-c", code), env={**SOURCE, **asking, **words}, capture_output=True, check=True, timeout=30
        )
        assert done.stdout.decode().split() == [expected]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("runs --limit 0", "Invalid value for '--limit': Input should be greater than or equal to 1."),
        ("runs --limit", "Option '--limit' requires an argument."),
        ("tail", "Missing argument 'target'."),
        ("keys new --bogus", "No such option: --bogus."),
        ("bogus", "No such command 'bogus'."),
    ],
)
def test_what_is_wrong_with_options_is_one_line(args: str, says: str) -> None:
    """As every other error; what there is instead, the help says."""
    done = subprocess.run(runstream(*args.split()), env=SOURCE, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"runstream: {says} `")
    assert line.endswith(" --help` says what there is.")


def test_a_group_that_is_called_by_its_name_shows_its_help() -> None:
    """Nothing was asked for, and nothing is wrong."""
    done = subprocess.run(runstream("keys"), env=SOURCE, capture_output=True, text=True, check=False, timeout=30)
    assert "Revoke a key or a token" in done.stdout + done.stderr
    assert "runstream: " not in done.stderr
