"""The text form shared by variants and backends: `name[:device][{option=value,…}]`.

`int8-static{calibration=entropy,per_channel=true}` and `ov:GPU{precision=bf16}` are names in records, tables and on the
command line alike; `parse` and `str` are inverse to each other on the canonical form (options sorted by name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.errors import EdgeprofError

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_VALUE = r"[A-Za-z0-9_.+/:|%~-]+"
_SPEC = re.compile(rf"(?P<name>{_NAME})(?::(?P<device>{_NAME}(?:\.\d+)?))?(?:\{{(?P<options>[^{{}}]*)\}})?")
_OPTION = re.compile(rf"\s*(?P<key>[a-z][a-z0-9_]*)\s*=\s*(?P<value>{_VALUE})\s*")
_LISTED = re.compile(_VALUE.replace("|", ""))


class SpecError(EdgeprofError):
    """A variant or backend text does not parse."""


@dataclass(frozen=True)
class Spec:
    """A parsed `name[:device]{options}`. Option values stay text; whoever owns the options converts them."""

    name: str
    device: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The canonical text: `parse(str(spec)) == spec`."""
        device = f":{self.device}" if self.device else ""
        options = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}{device}" + (f"{{{options}}}" if options else "")

    def __hash__(self) -> int:
        """Equal specs hash alike, although `options` is a mapping."""
        return hash(str(self))


def parse(text: str) -> Spec:
    """Parse one spec. Raises SpecError that shows the text and the form expected."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise SpecError(
            f"cannot read '{text}': expected name, name:device or name{{option=value,…}}, e.g. int8-static{{per_channel=true}}."
        )
    options: dict[str, str] = {}
    for part in filter(str.strip, (match["options"] or "").split(",")):
        option = _OPTION.fullmatch(part)
        if option is None:
            raise SpecError(
                f"cannot read option '{part.strip()}' in '{text}': expected option=value (in a path %20 is a space, %2C a comma)."
            )
        if option["key"] in options:
            raise SpecError(f"option '{option['key']}' stands twice in '{text}'.")
        options[option["key"]] = option["value"]
    return Spec(match["name"], match["device"], options)


def listable(name: str) -> bool:
    """Whether an option can hold the name in a list, `skip=a|b`."""
    return _LISTED.fullmatch(name) is not None


def split_list(text: str) -> list[str]:
    """Split `a,b{x=1,y=2},c` at the commas outside braces; empty parts vanish."""
    return [part for part in _split(text, ",") if part]


def split_steps(text: str) -> list[str]:
    """Split `a{x=1}+b` at the plus signs outside braces; empty parts are kept, for whoever has to complain of them."""
    return _split(text, "+")


def canonical(text: str) -> str:
    """The canonical text of one spec, or of several joined by plus signs. Raises SpecError."""
    return "+".join(str(parse(part)) for part in split_steps(text))


def _split(text: str, sign: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == sign and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return parts
