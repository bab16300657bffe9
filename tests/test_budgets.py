"""The size and shape budgets of the package, held over its syntax trees with zero exceptions.

Complexity, branches, statements and argument counts are ruff's; here is what ruff does not count: lines, nested
blocks, inheritance depth, module names, relative imports, unexplained local imports and silenced checkers.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sftprep"
MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_NESTED_BLOCKS, MAX_INHERITANCE = 60, 300, 3, 1
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
SILENCERS = ("noqa", "type: ignore", "pragma: no cover", "mypy:", "fmt: off", "fmt: skip", "ruff:")
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Sources = dict[str, str]


def package_sources() -> Sources:
    """Source text by dotted module name."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text(
            encoding="utf-8"
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods and nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def long_functions(sources: Sources) -> list[str]:
    """Functions of more than 60 lines, docstring included."""
    return [
        f"{module}.{node.name}: {lines} lines"
        for module, text in sources.items()
        for node in functions(ast.parse(text))
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def long_files(sources: Sources) -> list[str]:
    """Files of more than 300 lines."""
    return [f"{module}: {n} lines" for module, text in sources.items() if (n := text.count("\n")) > MAX_FILE_LINES]


def nesting(node: ast.AST, depth: int = 0, *, is_elif: bool = False) -> int:
    """The deepest nesting of blocks below a function; an `elif` is its `if`'s equal, a nested function starts anew."""
    depth += isinstance(node, BLOCKS) and not is_elif
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
            deepest = max(deepest, nesting(child, depth, is_elif=chained))
    return deepest


def deep_functions(sources: Sources) -> list[str]:
    """Functions with more than three nested blocks."""
    return [
        f"{module}.{node.name}: {depth} nested blocks"
        for module, text in sources.items()
        for node in functions(ast.parse(text))
        if (depth := nesting(node)) > MAX_NESTED_BLOCKS
    ]


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name → dotted origin, for everything imported from the package."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sftprep"
        for alias in node.names
    }


def class_bases(sources: Sources) -> dict[str, list[str]]:
    """Dotted class → dotted bases; a base from outside the package keeps the name that the source gives it."""
    found: dict[str, list[str]] = {}
    for module, text in sources.items():
        tree = ast.parse(text)
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        origin = imported_names(tree) | {node.name: f"{module}.{node.name}" for node in classes}
        for node in classes:
            names = [ast.unparse(base).split("[")[0] for base in node.bases]
            heads = [name.partition(".") for name in names]
            found[f"{module}.{node.name}"] = [origin.get(head, head) + dot + rest for head, dot, rest in heads]
    return found


def deep_classes(sources: Sources) -> list[str]:
    """Classes whose chain of bases inside the package is longer than one; the exception tree is exempt."""
    bases = class_bases({module: text for module, text in sources.items() if module != "sftprep.errors"})

    def depth(name: str) -> int:
        return max((1 + depth(base) for base in bases.get(name, []) if base in bases), default=0)

    return [f"{name}: inheritance depth {depth(name)}" for name in bases if depth(name) > MAX_INHERITANCE]


def vague_modules(sources: Sources) -> list[str]:
    """Modules whose name says nothing."""
    return [module for module in sources if VAGUE_NAMES & {part.strip("_") for part in module.split(".")}]


def relative_imports(sources: Sources) -> list[str]:
    """Imports that begin with a dot."""
    return [
        f"{module}:{node.lineno}"
        for module, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def silenced_checks(sources: Sources) -> list[str]:
    """Comments that switch a checker off."""
    return [
        f"{module}:{token.start[0]}: {token.string}"
        for module, text in sources.items()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and any(word in token.string for word in SILENCERS)
    ]


def local_imports_without_reason(sources: Sources) -> list[str]:
    """Imports inside a function without a comment on their line or above the run of imports that they stand in."""
    found = set()
    for module, text in sources.items():
        lines = text.splitlines()
        imports = [
            node
            for function in functions(ast.parse(text))
            for node in ast.walk(function)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        ends = {node.end_lineno or node.lineno: node.lineno for node in imports}
        for node in imports:
            first = node.lineno
            while first - 1 in ends:
                first = ends[first - 1]
            if "#" not in "".join(lines[first - 2 : node.end_lineno]):
                found.add(f"{module}:{node.lineno}")
    return sorted(found)


def lines_of(count: int, *, head: str) -> str:
    """A source of `count` lines below a head."""
    return head + "\n" + "    pass\n" * (count - 1)


Check = Callable[[Sources], list[str]]
PLANTED: list[tuple[Check, str, Sources]] = [
    (long_functions, "a function of 61 lines", {"sftprep.a": lines_of(61, head="def f():")}),
    (long_files, "a file of 301 lines", {"sftprep.a": "x = 1\n" * 301}),
    (
        deep_functions,
        "four nested blocks",
        {"sftprep.a": "def f(x):\n if x:\n  for y in x:\n   with y:\n    while y: pass\n"},
    ),
    (
        deep_classes,
        "a grandchild across modules",
        {
            "sftprep.a": "class A: ...\nclass B(A): ...\n",
            "sftprep.b": "from sftprep.a import B as Base\nclass C(Base): ...\n",
        },
    ),
    (
        deep_classes,
        "a grandchild through a module's name",
        {
            "sftprep.a": "class A: ...\nclass B(A): ...\n",
            "sftprep.b": "from sftprep import a\nclass C(a.B): ...\n",
        },
    ),
    (vague_modules, "a module called utils", {"sftprep.stages.utils": ""}),
    (relative_imports, "a relative import", {"sftprep.a": "from . import b\n"}),
    (silenced_checks, "a silenced checker", {"sftprep.a": "x = 1  # noqa\n"}),
    (
        local_imports_without_reason,
        "an unexplained local import",
        {"sftprep.a": "def f():\n    x = 1\n    import os\n"},
    ),
]
CHECKS = list(dict.fromkeys(check for check, _, _ in PLANTED))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_holds_its_budget(check: Check) -> None:
    sources = package_sources()
    assert len(sources) > 10, "the package's sources were not found"
    assert check(sources) == []


@pytest.mark.parametrize(("check", "fault", "sources"), PLANTED, ids=[fault for _, fault, _ in PLANTED])
def test_the_check_finds_a_planted_fault(check: Check, fault: str, sources: Sources) -> None:
    assert check(sources), f"{check.__name__} did not see {fault}"


ALLOWED: list[tuple[Check, str, Sources]] = [
    (long_functions, "sixty lines", {"sftprep.a": lines_of(60, head="def f():")}),
    (long_files, "three hundred lines", {"sftprep.a": "x = 1\n" * 300}),
    (deep_functions, "an elif ladder", {"sftprep.a": "def f(x):\n" + " if x: pass\n" + " elif x: pass\n" * 5}),
    (deep_functions, "three nested blocks", {"sftprep.a": "def f(x):\n if x:\n  for y in x:\n   with y: pass\n"}),
    (deep_classes, "a child", {"sftprep.a": "class A(BaseModel): ...\nclass B(A): ...\n"}),
    (
        deep_classes,
        "two private bases of the same name",
        {
            "sftprep.a": "class _F(BaseModel): ...\nclass B(_F): ...\n",
            "sftprep.b": "class _F(BaseModel): ...\nclass C(_F): ...\n",
        },
    ),
    (
        local_imports_without_reason,
        "one reason for several imports",
        {"sftprep.a": "def f():\n    # start-up\n    import os\n    import re\n"},
    ),
]


@pytest.mark.parametrize(("check", "case", "sources"), ALLOWED, ids=[case for _, case, _ in ALLOWED])
def test_the_check_allows_what_the_budget_allows(check: Check, case: str, sources: Sources) -> None:
    assert check(sources) == [], f"{check.__name__} refused {case}"
