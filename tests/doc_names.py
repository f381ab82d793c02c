"""The names that documents quote, and whether they are still there: functions, flags, result keys, files, links."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import re
import shlex
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from doc_commands import QUICK, TOP, check_command, parsers
from pydantic import BaseModel
from worked_example import NAME as EXAMPLE

from gradsync.config import METHOD_CHOICES
from gradsync.errors import UsageError
from gradsync.results import RunResults
from gradsync.variants import parse_variant_name

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.~])[\w<>*.-]+(?:/[\w<>*.-]+)*\.(?:py|sh|md|txt|json|png|html|toml|pth|npz)(?!\w)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"(sudo |[A-Z_]+=\S+ )*(torchrun|python|\./\w+\.sh|\./tests/run)( |$)")
DRAWN = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b|\b[a-z_]\w+(?=\(\))")  # names in drawings: classes and calls
DOTTED = re.compile(r"[A-Za-z]\w*(\[\])?(\.\w+(\[\])?)*")
# Quoted, and not ours: what torch, the kernel and the shell call things.
FOREIGN = {"address already in use", "out of memory", "NCCL_DEBUG", "INFO", "MALLOC_TRIM_THRESHOLD_",
           "MALLOC_MMAP_THRESHOLD_", "SIGKILL", "null", "train", "val", "HOST", "PyTorchJob"}
# What a name of a variant may be made of, and the placeholders of such names.
PARTS = {word for words in METHOD_CHOICES.values() for word in words} | {"2servers", "staleness1"}
CHECKERS = ("doc_commands.py", "doc_names.py", "test_docs.py")  # quote what is not there, on purpose


@dataclass
class Index:
    """What the code defines: names, members of classes, and all the text that it holds outside of docstrings."""

    names: set[str] = field(default_factory=set)
    members: dict[str, set[str]] = field(default_factory=dict)
    bases: dict[str, set[str]] = field(default_factory=dict)
    strings: set[str] = field(default_factory=set)

    def read(self, tree: ast.Module, own: bool) -> None:
        """``own``: of the product, whose strings count too; a test may well hold those of things that are gone."""
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.names.add(node.id)
            elif own and isinstance(node, (ast.Attribute, ast.arg, ast.alias)):
                self.names.add(getattr(node, "attr", None) or getattr(node, "arg", None) or node.name.split(".")[-1])
            elif own and isinstance(node, ast.Constant) and id(node) not in documentation:
                self.strings.update({node.value} if isinstance(node.value, str) else ())
            if isinstance(node, ast.ClassDef):
                self.members.setdefault(node.name, set()).update(members(node))
                named = {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
                self.bases.setdefault(node.name, set()).update(named)

    def has_member(self, owner: str, name: str) -> bool:
        if name in self.members.get(owner, ()):
            return True
        return any(self.has_member(base, name) for base in self.bases.get(owner, ()))

    def knows(self, name: str) -> bool:
        return name in self.names or name in self.strings

    def says(self, text: str) -> bool:
        return any(text in string for string in self.strings)


def members(node: ast.ClassDef) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            yield inner.name
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr


@functools.cache
def index() -> Index:
    found = Index()
    for path in sorted(TOP.rglob("*.py")):
        if path.name not in CHECKERS and ".venv" not in path.parts:
            found.read(ast.parse(path.read_text()), own="tests" not in path.parts)
    for script in ("run_all_experiments.sh", "launch/python_env.sh", ".gitignore", "tests/run"):
        found.strings.add((TOP / script).read_text())
    return found


@functools.cache
def flags() -> dict[str, list[tuple[argparse.ArgumentParser, argparse.Action]]]:
    found: dict[str, list[tuple[argparse.ArgumentParser, argparse.Action]]] = {}
    for parser in parsers():
        for name, action in parser._option_string_actions.items():
            found.setdefault(name, []).append((parser, action))
    return found


def complaints(text: str, folder: Path, known: Iterable[str] = ()) -> list[str]:
    """All that ``text``, a document in ``folder``, says and the project does not have. ``known``: its own names."""
    found = [why for line in commands(text) if (why := refused(line))]
    prose = FENCE.sub("", text)
    own = {*known, *(name for language, block in FENCE.findall(text) if language == "python"
                     for name in re.findall(r"\w+", block))}
    for span in dict.fromkeys(SPAN.findall(prose)):
        if why := wrong_span(span, own):
            found.append(why)
    for name in dict.fromkeys(FILE.findall(text)):
        if not is_file(name, folder):
            found.append(f"{name}: no such file, neither here nor written by the project")
    found += [f"{name}: no such flag" for name in dict.fromkeys(FLAG.findall(text)) if not is_flag(name)]
    found += wrong_synopses(text)
    drawings = "\n".join(block for language, block in FENCE.findall(text) if not language)
    found += [f"{name}: no such name" for name in dict.fromkeys(DRAWN.findall(drawings)) if not index().knows(name)]
    links = [target for target in LINK.findall(prose) if not leads_somewhere(target, text, folder)]
    return found + [f"{target}: a link to nothing" for target in links]


def wrong_synopses(text: str) -> list[str]:
    """Of ``--flag a|b|c`` the values that it does not take, and of ``method[_a|_b]`` what no variant is called."""
    values = [(name, value) for name, words in re.findall(r"(--[a-z][\w-]*) ([\w-]+(?:\|[\w-]+)+)", text)
              for value in words.split("|")]
    parts = [part for words in re.findall(r"\w\]?\[(_\w+(?:\|_\w+)*)\]", text) for part in words.split("|")]
    return [*(f"{name} does not take {value}" for name, value in values if not takes(name, value)),
            *(f"{part}: no variant is called that" for part in parts if part[1:] not in PARTS)]


def commands(text: str) -> list[str]:
    """Those in blocks of shell, in lines of plain text that begin like one, and those quoted in a sentence."""
    text = text.replace("\\\n", " ")  # a command may go on in the next line
    if "```" not in text:
        return [line.strip() for line in text.splitlines() if COMMAND.match(line.strip())]
    blocks = [block for language, block in FENCE.findall(text) if language == "bash"]
    lines = [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]
    quoted = [span for span in SPAN.findall(FENCE.sub("", text)) if COMMAND.match(span) and "[" not in span]
    return lines + quoted


def refused(line: str) -> str:
    """Why a command would be, or an empty string."""
    try:
        check_command(line)
    except UsageError as error:
        return f"{line}: {error}"
    return ""


def is_flag(name: str) -> bool:
    return name in flags() or (name == QUICK and index().says(QUICK))


def wrong_span(span: str, own: set[str]) -> str:
    """What is wrong with a piece of quoted code, or an empty string. What is no name, such as a formula, passes."""
    if COMMAND.match(span) or FILE.fullmatch(span) or span in FOREIGN | PARTS | own:
        return ""
    if span.startswith("--"):
        return wrong_flags(span)
    if span.endswith("/"):
        place = span.removeprefix("./").rstrip("/").rstrip("0123456789N")
        return "" if (TOP / place).is_dir() or index().says(place) else f"{span}: no such directory"
    name = re.sub(r"\(.*\)$", "", span)
    if DOTTED.fullmatch(name) and len(name) > 2:
        return "" if is_name(name, own) else f"{span}: no such name"
    if re.fullmatch(r"[A-Za-z][A-Za-z ,:'-]+", span) and not index().says(span):
        return f"{span}: the project says that nowhere"
    return ""


def wrong_flags(span: str) -> str:
    """Of ``--flag`` and ``--flag value``, also several of them; of messages about a flag, only its name counts."""
    if re.search(r"[|:\[]", span):
        return ""
    words = shlex.split(span.replace("=", " "))
    for word, value in zip(words, [*words[1:], "--"], strict=True):
        if not word.startswith("--") or value.startswith("--") or value.isupper():  # a placeholder such as DIR
            continue
        if not takes(word, value):
            return f"{span}: {word} does not take {value}"
    return ""


def takes(name: str, value: str) -> bool:
    """Whether some script's flag of this name does."""
    return any(accepts(parser, action, value) for parser, action in flags().get(name, ()))


def accepts(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> bool:
    if action.nargs == 0:
        return False
    try:
        parser._get_values(action, [value])
    except (argparse.ArgumentError, UsageError):
        return False
    return True


def is_name(name: str, own: set[str]) -> bool:
    """A function, class, member, module, result key, or variant; those of torch are looked up there."""
    first, *rest = name.replace("[]", "").split(".")
    if first in ("torch", "nn", "dist"):
        return in_torch({"nn": "torch.nn", "dist": "torch.distributed"}.get(first, first), rest)
    if first in RunResults.model_fields and (rest or "[]" in name):
        return is_key([first, *rest])
    if first in own or is_variant(first):
        return True
    if not rest:
        return index().knows(first)
    if first in index().members:
        return len(rest) == 1 and index().has_member(first, rest[0])
    if first == "self":
        return all(part in index().names for part in rest)
    if (TOP / first).is_dir():
        return (TOP / "/".join([first, *rest])).is_dir() or (TOP / f"{'/'.join([first, *rest])}.py").exists()
    return index().knows(first) and all(index().knows(part) for part in rest)


def in_torch(module: str, parts: list[str]) -> bool:
    found = importlib.import_module(module)
    for part in parts:
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


def is_variant(name: str) -> bool:
    try:
        parse_variant_name(name)
    except ValueError:
        return name == EXAMPLE
    return True


def is_key(parts: list[str]) -> bool:
    """Whether a results file has this key, by its schema."""
    model: type[BaseModel] | None = RunResults
    for part in parts:
        if model is None or part not in model.model_fields:
            return False
        model = section(model.model_fields[part].annotation)
    return True


def section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section, typing.get_args(annotation))), None)


def is_file(name: str, folder: Path) -> bool:
    """In the repository, there or beside the document or anywhere by its last names; or one that the project writes."""
    base = Path(name).name
    if match := re.fullmatch(r"results_(.+?)(\.failed)?\.json", base):
        return match[1] in ("*", "<method>", "<name>") or is_variant(match[1]) or index().knows(match[1])
    if "<" not in name and ((TOP / name).exists() or (folder / name).exists()
                            or any(path.match(name) for path in TOP.rglob(base) if ".venv" not in path.parts)):
        return True
    written = re.sub(r"<\w+>|\*", "", base)
    return base == f"{EXAMPLE}_train.py" or index().says(written) or Path(base).stem in index().strings


def leads_somewhere(target: str, text: str, folder: Path) -> bool:
    if "://" in target:
        return True
    path, _, anchor = target.partition("#")
    if path and not (folder / path).exists():
        return False
    if not anchor:
        return True
    return anchor in anchors((folder / path).read_text() if path else text)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}
