"""The golden captures: what the reference said, and how to compare it with what runstream says."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.http import Event, parse_events

CAPTURES = Path(__file__).parents[1] / "contract" / "captures"

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ID = re.compile(f"(?:(?P<kind>[a-z]+)-)?{_UUID}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?P<fraction>\.\d{6})?(?P<zone>Z|\+00:00)?")
_MATRIX_CASE = re.compile(r"### (?P<name>.+)\n(?P<body>(?s:.*?))\n\[http (?P<status>\d+) ct=(?P<type>.*)\]\n")


@dataclass(frozen=True)
class Capture:
    """One response of the reference."""

    status: int
    body: str
    content_type: str = ""

    @property
    def events(self) -> list[Event]:
        """Its events; `json.dumps` with spaces in one of the reference's errors is JSON all the same."""
        return parse_events(self.body.strip("\n").encode() + b"\n\n")

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


def capture(number: int) -> Capture:
    """The capture whose file name begins with that number."""
    (path,) = CAPTURES.glob(f"{number:02}_*.http")
    head, _, body = path.read_text().partition("\n\n")
    status_line, *headers = head.splitlines()
    (content_type,) = (line.partition(": ")[2] for line in headers if line.startswith("content-type: "))
    return Capture(int(status_line.split()[1]), body, content_type)


def matrix() -> dict[str, Capture]:
    """The cases of the error matrix, by name."""
    text = (CAPTURES / "errors_matrix.txt").read_text()
    found = {
        case["name"]: Capture(int(case["status"]), case["body"], case["type"]) for case in _MATRIX_CASE.finditer(text)
    }
    assert len(found) == text.count("### "), "a case of the matrix was not understood"
    return found


def normalised(events: list[Event]) -> list[Any]:
    """Events as parsed JSON: what differs between any two runs is replaced by what it is and its order of appearance.

    So two events have the same id on one side if, and only if, they have it on the other. Cursors must increase.
    """
    names: dict[str, str] = {}
    cursor = 0
    result: list[Any] = []
    for event in events:
        if event.is_done:
            result.append("[DONE]")
            continue
        body = dict(event.json)
        if body.get("seq_id") is not None:
            assert body["seq_id"] > cursor, f"seq_id {body['seq_id']} after {cursor}"
            cursor, body["seq_id"] = body["seq_id"], "a cursor"
        result.append((event.event, {key: _normalised(value, names) for key, value in body.items()}))
    return result


def normalised_object(body: dict[str, Any]) -> dict[str, Any]:
    """One JSON object, as in `normalised`."""
    names: dict[str, str] = {}
    return {key: _normalised(value, names) for key, value in body.items()}


def _normalised(value: Any, names: dict[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    if match := _ID.fullmatch(value):
        return names.setdefault(value, f"{match['kind'] or 'otid'} {len(names)}")
    if match := _DATE.fullmatch(value):
        return f"a date, fraction {bool(match['fraction'])}, zone {match['zone']}"
    return value
