"""pydantic types, each with a text that must be possible: what a schema of pydantic can say."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import ipaddress
import pathlib
import uuid
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    Base64Str,
    Base64UrlStr,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    HttpUrl,
    IPvAnyAddress,
    IPvAnyInterface,
    IPvAnyNetwork,
    NegativeFloat,
    PositiveInt,
    SecretStr,
    StrictInt,
    StringConstraints,
    Tag,
    conbytes,
    conlist,
)
from typing_extensions import TypedDict


class Size(enum.IntEnum):
    LEAST = -(2**63)
    BIG = 2**53 + 1


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog", "puppy"] = "dog"
    name: str | None = None


class Bird(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal[1] = 1
    sings: bool = True


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Animal = Annotated[Pet | Bird, Field(discriminator="kind")]


class Tree(BaseModel):
    value: int
    children: list[Tree] = Field(default_factory=list, max_length=2)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int
    __pydantic_extra__: dict[str, int]


class Home(BaseModel):
    pets: list[Animal] = Field(max_length=3)
    first: Pet | None = None
    address: tuple[str, int]


class Point(TypedDict):
    x: float
    y: float


class Pair(NamedTuple):
    left: int
    right: str = "r"


@dataclasses.dataclass
class Record:
    name: str
    size: Size
    tags: set[Literal["a", "b", "c"]] = dataclasses.field(default_factory=set)


def _kind_of(value: Any) -> str:
    return "cat" if isinstance(value, dict) and value.get("kind") == "cat" else "dog"


TYPES: list[tuple[Any, str]] = [
    (UUID4, '"9b2cf1a0-1c2d-4e3f-8a9b-0c1d2e3f4a5b"'),
    (uuid.UUID, '"9b2cf1a0-1c2d-1e3f-8a9b-0c1d2e3f4a5b"'),
    (pathlib.Path, '"/tmp/x"'),
    (bytes, '"abc"'),
    (conbytes(max_length=5), '"abc"'),
    (SecretStr, '"s"'),
    (ipaddress.IPv4Address, '"127.0.0.1"'),
    (ipaddress.IPv6Address, '"::1"'),
    (ipaddress.IPv4Network, '"10.0.0.0/8"'),
    (ipaddress.IPv6Network, '"fe80::/16"'),
    (ipaddress.IPv4Interface, '"10.0.0.1/24"'),
    (ipaddress.IPv6Interface, '"fe80::1/64"'),
    (IPvAnyAddress, '"1.2.3.4"'),
    (IPvAnyNetwork, '"10.0.0.0/8"'),
    (IPvAnyInterface, '"::1/128"'),
    (Base64Bytes, f'"{base64.b64encode(b"hello").decode()}"'),
    (Base64Str, f'"{base64.b64encode(b"hello!").decode()}"'),
    (Base64UrlStr, f'"{base64.urlsafe_b64encode(b"hi").decode()}"'),
    (AnyUrl, '"https://example.org/a?b=c"'),
    (HttpUrl, '"http://example.org/"'),
    (datetime.date, '"2024-02-29"'),
    (datetime.time, '"23:59:59Z"'),
    (datetime.datetime, '"2024-02-29T12:00:00.5+01:00"'),
    (AwareDatetime, '"0001-01-01T00:00:00Z"'),
    (datetime.timedelta, '"P1DT2H"'),
    (dict[Literal["x", "y"], int], '{"x": 1, "y": 2}'),
    (dict[Colour, int], '{"blue": 2}'),
    (dict[datetime.date, bool], '{"2024-02-29": true}'),
    (dict[Annotated[str, StringConstraints(pattern=r"^a\w+$")], int], '{"ab": 1}'),
    (Annotated[dict[str, int], Field(max_length=2)], '{"q": 1}'),
    (list[Cat], '[{"kind": "cat", "lives": 9}]'),
    (Pet, '{"kind": "puppy", "name": null}'),
    (Animal, '{"kind": 1, "sings": false}'),
    (Annotated[Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")], Discriminator(_kind_of)],
     '{"kind": "cat"}'),
    (Cat | Dog | Bird, "{}"),
    (Home, '{"pets": [{"kind": "dog"}], "first": null, "address": ["x", 1]}'),
    (Tree, '{"value": 1, "children": [{"value": 2}]}'),
    (Open, '{"x": 1, "y": 2}'),
    (Point, '{"x": 1.5, "y": -2e3}'),
    (Pair, "[1]"),
    (Record, '{"name": "n", "size": 9007199254740993, "tags": ["a", "c"]}'),
    (Size, "-9223372036854775808"),
    (Literal[2**60 + 1, "x", None, True], "1152921504606846977"),
    (Annotated[int, Field(ge=2**53 + 1, le=2**53 + 3)], "9007199254740993"),
    (Annotated[int, Field(ge=-(2**63), le=2**63 - 1)], "-9223372036854775808"),
    (Annotated[float, Field(gt=0, le=0.5)], "0.125"),
    (Annotated[float, Field(ge=-1e20, lt=1e21)], "123456789012345678901.5"),
    (Annotated[float, Field(gt=0.1, lt=0.2)], "0.15"),
    (Annotated[int, Field(multiple_of=7, ge=1)], "14"),
    (PositiveInt, "1"),
    (NegativeFloat, "-0.5"),
    (StrictInt, "0"),
    (conlist(int, min_length=1, max_length=2), "[1, 2]"),
    (frozenset[bool], "[true]"),
    (tuple[int, ...], "[]"),
    (Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}\d+$", max_length=6)], '"AB12"'),
    (Annotated[str, Field(pattern="b")], '"abc"'),
    (Any, '{"a": [1, null]}'),
    (int | str | None, "null"),
    (float, "1e21"),
]  # fmt: skip
