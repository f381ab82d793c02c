"""Does this Python satisfy the requirements files? Standard library only, so that a Python without torch can ask.

    python gradsync/requirements_check.py requirements.txt tests/requirements.txt

Prints what is missing, one line each. Exit code 0: satisfied; 1: not. Nothing is imported or downloaded: the
installed packages' metadata answers, in a tenth of a second.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*\(?([^();]*)\)?$")
SPECIFIER = re.compile(r"^(===|==|!=|<=|>=|~=|<|>)\s*([^\s*]+?)(\.\*)?$")
VERSION = re.compile(r"^v?(\d+(?:\.\d+)*)[-_.]?(a|b|rc|dev|alpha|beta|pre|c)?", re.IGNORECASE)
COMPARE: dict[str, Callable[[object, object], bool]] = {
    "==": operator.eq, "===": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}
# A torchvision that was built for another torch fails at import, in a way that explains nothing.
PAIRS = (("torchvision", "torch"),)

Versions = Callable[[str], "str | None"]
Needs = Callable[[str], "list[str] | None"]


def installed_version(name: str) -> str | None:
    """Version of an installed package; None if it is not there, or only half there."""
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    # Installers write these two last, so a wheel that has neither was interrupted.
    if package.read_text("METADATA") and not (package.read_text("INSTALLER") or package.read_text("RECORD")):
        return None
    return package.version


def release(version: str) -> tuple[int, ...]:
    """(2, 11) of 2.11.0+cpu: the numbers, without trailing zeros. A local part never counts."""
    match = VERSION.match(version)
    if not match:
        raise ValueError(f"{version!r} is not a version")
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def order_key(version: str) -> tuple[tuple[int, ...], bool]:
    """Sorts like the version; a pre-release (2.12.0a0, 2.12.dev1) comes before its release."""
    match = VERSION.match(version)
    return release(version), match is None or match[2] is None


def satisfies(version: str, specifiers: str) -> bool:
    """Whether ``version`` meets comma-separated specifiers such as ``>=2.11,<3`` or ``!=8.3.*``."""
    return all(_meets(version, text.strip()) for text in specifiers.split(",") if text.strip())


def _meets(version: str, specifier: str) -> bool:
    match = SPECIFIER.match(specifier)
    if not match:
        raise ValueError(f"{specifier!r} is not a version specifier")
    sign, wanted, any_below = match.groups()
    if any_below:
        prefix = tuple(int(part) for part in wanted.split("."))
        padded = release(version) + (0,) * len(prefix)
        return (padded[: len(prefix)] == prefix) == (sign == "==")
    if sign == "~=":  # at least this, in the same series
        series = tuple(int(part) for part in wanted.split(".")[:-1])
        padded = release(version) + (0,) * len(series)
        return order_key(version) >= order_key(wanted) and padded[: len(series)] == series
    return COMPARE[sign](order_key(version), order_key(wanted))


def read_requirements(text: str) -> Iterator[tuple[str, str]]:
    """(name, specifiers) of each line of a requirements file."""
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        if line:
            match = REQUIREMENT.match(line)
            if not match:
                raise ValueError(f"cannot read the requirement {line!r}")
            yield match[1], match[2].strip()


def problems(requirements: Iterable[tuple[str, str]], version_of: Versions, needs_of: Needs) -> Iterator[str]:
    """One line for each requirement that is not met, and for each pair that does not match."""
    for name, specifiers in requirements:
        version = version_of(name)
        if version is None:
            yield f"{name}{specifiers} is missing"
        elif not satisfies(version, specifiers):
            yield f"{name}{specifiers} is needed, {version} is installed"
    for package, partner in PAIRS:
        version, partner_version = version_of(package), version_of(partner)
        for need in needs_of(package) or [] if version and partner_version else []:
            match = REQUIREMENT.match(need.split(";")[0].strip())
            if match and match[1].lower() == partner and not satisfies(partner_version or "", match[2]):
                yield f"{package} {version} needs {partner}{match[2].strip()}, {partner_version} is installed"


def check_files(paths: Iterable[Path]) -> list[str]:
    """What this Python lacks of the files' requirements. Raises OSError or ValueError for a bad file."""
    requirements = [entry for path in paths for entry in read_requirements(path.read_text(encoding="utf-8"))]
    return list(problems(requirements, installed_version, lambda name: metadata.distribution(name).requires))


if __name__ == "__main__":
    try:
        found = check_files(map(Path, sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: requirements: {error}")
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
