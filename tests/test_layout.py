"""How the source is laid out; import-linter checks who imports whom."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("smollm2", "smolctl", "tests", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_FILE = 400
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("smollm2", "smolctl")]

# Functions of two modules that share a name because the caller means the same by it.
SHARED_FUNCTIONS = {
    # A command is named as the user types it, and so is the library's function that does the work.
    *("generate", "prepare", "quantize", "train"),
    "register",  # adds an entry to the registry of its module, as in `corpora.register`
    *("say", "warn", "progress"),  # `talk.Talker`, a protocol that the module `console` satisfies
}


def test_no_two_modules_have_the_same_name():
    counts = Counter(path.name for path in SOURCES if not path.name.startswith("__"))
    assert len(counts) > 100
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_two_modules_define_a_public_function_of_the_same_name():
    modules: dict[str, set[str]] = {}
    for path in SOURCES:
        for name in public_functions(path.read_text("utf-8")):
            modules.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert len(modules) > 500
    shared = {name: sorted(paths) for name, paths in modules.items() if len(paths) > 1}
    assert {name: paths for name, paths in shared.items() if name not in SHARED_FUNCTIONS} == {}
    assert SHARED_FUNCTIONS - shared.keys() == set()


def public_functions(source: str) -> set[str]:
    """The names of a module's own functions that do not start with an underscore."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in ast.parse(source).body if isinstance(node, functions)}
    return {name for name in names if not name.startswith("_")}


def test_methods_and_private_functions_are_not_public_functions():
    source = "def a():\n  def b(): ...\n\ndef _c(): ...\n\nclass D:\n  def e(self): ...\n"
    assert public_functions(source) == {"a"}


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path.name: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_test_imports_a_test():
    tests = {path.stem: path for path in FILES if path.name.startswith("test_")}
    imports = {name: imported_modules(path) for name, path in tests.items()}
    found = [(name, m) for name, ms in imports.items() for m in ms if m.split(".")[-1] in tests]
    assert found == []


def imported_modules(path: Path) -> list[str]:
    """The modules that a file imports, also those imported `from` their package."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules += [node.module or "", *(alias.name for alias in node.names)]
    return modules


def test_an_imported_test_is_found(tmp_path):
    file = tmp_path / "test_new.py"
    file.write_text("import json\n\ndef test():\n    from report import test_results as results\n")
    assert imported_modules(file) == ["json", "report", "test_results"]
