"""Dataclasses read back from JSON: what was written, and nothing else."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from frugal_shared.checkpoint import write_json
from frugal_shared.errors import RunError, check_positive
from frugal_shared.reading import read_dataclass


@dataclass(frozen=True)
class Painter:
    name: str
    age: int
    height: float
    place: Path
    size: int | None
    kind: Literal["oil", "ink"]
    works: tuple[str, ...]
    box: tuple[int, float]
    prices: dict[str, list[float]]
    rest: list[dict[str, Any]]
    alive: bool = True

    def __post_init__(self):
        check_positive(self, "age")


PAINTER = Painter("Ada", 3, 1, Path("a/b"), None, "ink", ("x", "y"), (1, 2.5), {"x": [1, 2.5]}, [{"y": None}])


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / "painter.json"
    write_json(path, asdict(PAINTER))
    found = read_dataclass(path, Painter)
    assert found == PAINTER
    assert type(found.height) is float


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 7}, {"age": True}, {"age": 1.0}, {"height": "x"}, {"height": True}, {"place": 7}, {"size": "x"},
        {"kind": "chalk"}, {"kind": []}, {"works": "xy"}, {"works": [1]}, {"box": [1]}, {"prices": {"x": 1}},
        {"rest": [1]}, {"alive": None}, {"unknown": 1}, {"age": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_of_another_type_is_refused_by_name(tmp_path, changed):
    path = tmp_path / "painter.json"
    write_json(path, asdict(PAINTER) | changed)
    with pytest.raises(RunError, match=rf"painter\.json' is no Painter: .*{next(iter(changed))}"):
        read_dataclass(path, Painter)


def test_what_is_missing_is_refused_by_name(tmp_path):
    path = tmp_path / "painter.json"
    path.write_text(json.dumps({key: value for key, value in asdict(PAINTER).items() if key != "place"}, default=str))
    with pytest.raises(RunError, match="'place'"):
        read_dataclass(path, Painter)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a": "\ud800"}'.encode("utf-8", "surrogatepass")])
def test_what_is_no_object_is_refused(tmp_path, content):
    path = tmp_path / "painter.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=r"painter\.json"):
        read_dataclass(path, Painter)
