# SPDX-License-Identifier: Apache-2.0
"""The tests mirror the package: midjax/a/b.py is tested in tests/a/b_test.py."""

import ast
import pathlib

import midjax

PACKAGE = pathlib.Path(midjax.__file__).parent
TESTS = pathlib.Path(__file__).parent
# About the repository as a whole, not about one module; tests/e2e and tests/bench likewise.
WHOLE = {"imports_test.py", "mirror_test.py", "recipes_test.py"}
WHOLE_FOLDERS = {"e2e", "bench"}


def has_code(path: pathlib.Path) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text("utf-8")).body)


def test_of(module: pathlib.Path) -> pathlib.Path:
    relative = module.relative_to(PACKAGE)
    return relative.with_name(f"{relative.stem.strip('_')}_test.py")


test_of.__test__ = False  # type: ignore[attr-defined]


def test_every_module_has_its_test_file():
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    wanted = {test_of(path).as_posix() for path in modules if has_code(path)}
    missing = sorted(name for name in wanted if not (TESTS / name).is_file())
    assert not missing, f"without tests: {missing}"


def test_every_test_file_has_its_module():
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")}
    known = {test_of(path).as_posix() for path in PACKAGE.rglob("*.py")}
    known |= {f"{p.relative_to(PACKAGE).as_posix()}_test.py" for p in packages if p != PACKAGE}
    for path in sorted(TESTS.rglob("*_test.py")):
        relative = path.relative_to(TESTS)
        if relative.parts[0] in WHOLE_FOLDERS or relative.as_posix() in WHOLE:
            continue
        assert relative.as_posix() in known, f"tests/{relative} is about no module of midjax"


def test_no_packages_among_the_tests():
    assert not list(TESTS.rglob("__init__.py"))
