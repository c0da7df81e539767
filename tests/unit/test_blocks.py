"""Every block of code in README, docs and examples is run by a test, or is of a kind that says that it is not."""

import ast
import re
from collections.abc import Iterator

import pytest
import yaml

from tests.support.documents import ROOT, Block, blocks, documents

RUN = {"sh", "python", "js"}
"""What a reader types, or puts into a file."""
OTHERS = {
    "text": "output, and drawings",
    "mermaid": "a picture",
    "console": "commands of programs that no test has",
    "yaml": "a fragment that is parsed",
}
PROXIES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "caddyfile": "Caddyfile"}
"""Fragments of what is under deploy/proxies, where `make test-deploy` streams through the whole of it."""
ABSENT = {"docker", "helm", "kubectl", "nats"}
PICTURES = {"flowchart LR", "sequenceDiagram", "stateDiagram-v2"}

BLOCKS = [block for document in documents() for block in blocks(document)]


def taken() -> Iterator[tuple[str, str, str]]:
    """What tests take, as they call `blocks_below`: a document, a heading and a language, written out."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="blocks_below"), args=arguments):
                    texts = [each.value for each in arguments if isinstance(each, ast.Constant)]
                    assert len(texts) == 3, f"{path}:{node.lineno}: the three are to be written out"
                    document, heading, language = map(str, texts)
                    yield document, heading, language


TAKEN = set(taken())


def place(block: Block) -> str:
    return f"{block.document}: {block.heading} ({block.language or 'no language'})"


def test_there_is_something_to_look_at() -> None:
    """The tests below would pass on nothing."""
    assert len(BLOCKS) > 40
    assert {block.language for block in BLOCKS} >= RUN


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_a_block_says_what_it_is(block: Block) -> None:
    """One of the kinds that are known: what is run, and what is not."""
    assert block.language in RUN | OTHERS.keys() | PROXIES.keys()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in RUN], ids=place)
def test_a_block_is_run_by_a_test(block: Block) -> None:
    """A test takes what stands below its heading, in its language."""
    assert (block.document, block.heading, block.language) in TAKEN


@pytest.mark.parametrize("wanted", sorted(TAKEN), ids=": ".join)
def test_what_a_test_takes_is_there(wanted: tuple[str, str, str]) -> None:
    """A heading that was renamed takes its test with it."""
    assert wanted in {(block.document, block.heading, block.language) for block in BLOCKS}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "console"], ids=place)
def test_what_is_not_run_cannot_be(block: Block) -> None:
    """Its commands are those of programs that are not here: nobody hides a command of ours there."""
    commands = re.split(r"\n| && ", block.code.replace("\\\n", "").strip())
    assert {command.split()[0] for command in commands} <= ABSENT


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in PROXIES], ids=place)
def test_a_fragment_is_of_the_whole(block: Block) -> None:
    """Each of its lines stands in the configuration that is shipped and tested."""
    shipped = (ROOT / "deploy" / "proxies" / PROXIES[block.language]).read_text(encoding="utf-8")
    lines = {line.strip() for line in shipped.splitlines()}
    assert {line.strip() for line in block.code.splitlines()} <= lines


def test_pictures_and_fragments_can_be_read() -> None:
    """A picture begins with what it is; a fragment of YAML is YAML."""
    for block in BLOCKS:
        if block.language == "mermaid":
            assert block.code.splitlines()[0] in PICTURES, place(block)
        elif block.language == "yaml":
            assert yaml.safe_load(block.code), place(block)


def test_each_concept_has_one_picture() -> None:
    """The page has five concepts, and a picture below each heading."""
    pictures = [block.heading for block in blocks("docs/concepts.md") if block.language == "mermaid"]
    assert pictures == ["Run", "Chunk", "Cursor", "Tail", "Lease"]


def test_every_page_is_on_the_map() -> None:
    """Whoever begins at docs/README.md finds each page of docs, but for single records and runbooks."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    pages = {path.removeprefix("docs/") for path in documents() if path.startswith("docs/")}
    assert {page for page in pages if not page.startswith(("adr/0", "runbooks/Runstream"))} - {"README.md"} <= linked
