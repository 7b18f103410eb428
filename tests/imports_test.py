# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read off the source; and that the command line starts light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import midjax

PACKAGE = pathlib.Path(midjax.__file__).parent
BASE = {"types", "units", "files", "log"}
GLUE = {
    "against_verb",
    "__main__",
    "demo",
    "launch_verb",
    "lm_eval_model",
    "opening",
    "plan_verb",
    "show",
    "training",
    "verbs",
}  # verbs glued together: they import anything, and nobody imports them

# package or module -> what it may import of midjax, itself aside.
TABLE: dict[str, set[str]] = {
    "types": set(),
    "units": set(),
    "files": set(),
    "spool": {"files"},
    "log": {"files", "spool", "units"},
    "storage": {"files"},
    "demo_data": BASE,
    "corpora": BASE,
    "mixture": BASE,
    "model": BASE,
    "trees": set(),
    "compilation": set(),
    "distributed": {"log"},
    "checkpoint": BASE | {"storage", "trees", "distributed", "late_json"},
    "late_json": {"distributed"},
    "foreign_item": BASE | {"trees", "checkpoint"},
    "lineage": BASE | {"checkpoint"},
    "average": BASE | {"model", "trees", "checkpoint", "foreign_item", "lineage"},
    "trackers": BASE,
    "report": BASE,
    "hardware": BASE,
    "launch": BASE | {"hardware"},
    "curate": BASE | {"corpora"},
    "synthesize": BASE | {"corpora"},
    "batches": BASE | {"corpora", "mixture"},
    "evals": BASE | {"batches", "corpora", "mixture", "model", "strict"},
    "train": BASE
    | {
        "mixture",
        "batches",
        "model",
        "trees",
        "checkpoint",
        "distributed",
        "compilation",
        "lineage",
        "average",
        "evals",
        "trackers",
        "hardware",
    },
    "branch": BASE | {"checkpoint", "train"},
    "search": BASE | {"train", "evals", "mixture"},
    "plan": BASE | {"model", "batches", "checkpoint", "train", "hardware", "strict"},
    "export": BASE | {"model", "checkpoint", "export_check"},
    "export_check": BASE | {"model"},
    "importing": BASE | {"model", "trees", "checkpoint", "foreign_item", "lineage"},
    "strict": BASE,
    "config": BASE | {"strict"},
}
# A dependency -> the packages and modules that may import it.
ONE_OWNER = {
    "gin": {"config"},
    "orbax": {"checkpoint", "foreign_item", "late_json"},
    "flax": {"model"},
    "qwix": {"model.quantized"},
    "transformers": {"export_check"},
    "tokenizers": {"batches.encoders", "export", "evals", "importing.llama2c_tokenizer"},
    "safetensors": {"model.tensor_files"},
    "torch": {"export_check"},
    "pyarrow": {"corpora", "files"},
    "tensorflow_datasets": {"corpora.tfds"},
    "seqio": {"corpora.seqio", "batches.seqio"},
    "tensorboardX": {"trackers.tools"},
    "wandb": {"trackers.tools"},
    "trackio": {"trackers.tools"},
    "lm_eval": {"lm_eval_model"},
}
NEVER_AT_MODULE_LEVEL = {
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_text",
    "seqio",
    "torch",
    "tensorboardX",
    "wandb",
    "trackio",
    "lm_eval",
}
NEVER = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
# Sent as text into the sandbox, to run code there; never imported by midjax, see the test below.
INSIDE_THE_SANDBOX = "evals.sandbox.inside"


def name_of(path: pathlib.Path) -> str:
    """`batches.tokenize` of midjax/batches/tokenize.py; a package's own name of its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[pathlib.Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if name_of(path))


def imports(path: pathlib.Path) -> list[tuple[str, int, bool]]:
    """(dotted name, line, at module level) of each import, `from a import b` being `a.b`."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node.lineno, node not in inner) for name in names]
    return found


def within(name: str, owners: set[str]) -> bool:
    return any(name == owner or name.startswith(owner + ".") for owner in owners)


PATHS = pytest.mark.parametrize("path", modules(), ids=name_of)


@PATHS
def test_midjax_imports_follow_the_table(path):
    top = name_of(path).partition(".")[0]
    assert top in TABLE or top in GLUE, f"{path} is not in the table: say what it may import"
    for dotted, line, _ in imports(path):
        root, _, rest = dotted.partition(".")
        target = rest.partition(".")[0]
        if root != "midjax" or target in ("", "__version__"):
            continue
        if top in GLUE:
            allowed = target not in {"__main__", "strict"}
        else:
            allowed = target == top or target in TABLE[top]
        assert allowed, f"{path}:{line}: {top} imports midjax.{target}"


@PATHS
def test_dependencies_have_one_owner(path):
    name = name_of(path)
    for dotted, line, top_level in imports(path):
        root, place = dotted.partition(".")[0], f"{path}:{line}: {dotted}"
        assert root not in NEVER, f"{place}: data of others is never unpickled"
        assert not (top_level and root in NEVER_AT_MODULE_LEVEL), f"{place}: import in a function"
        if root in ONE_OWNER:
            assert within(name, ONE_OWNER[root]), f"{place}: only in {sorted(ONE_OWNER[root])}"


@PATHS
def test_no_code_from_text(path):
    if name_of(path) == INSIDE_THE_SANDBOX:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in BANNED_CALLS, f"{path}:{node.lineno}: {node.func.id}()"


def test_what_runs_code_stays_in_the_sandbox():
    mentions = [
        path
        for path in modules()
        if "inside" in path.read_text(encoding="utf-8")  # parsing all takes seconds
        for dotted, _, _ in imports(path)
        if f"{dotted}.".startswith(f"midjax.{INSIDE_THE_SANDBOX}.")
    ]
    assert not mentions
    sent = {INSIDE_THE_SANDBOX, "evals.sandbox.supervisor"}  # as text, to a bare interpreter
    for path in modules():
        if name_of(path) in sent:
            others = {dotted.partition(".")[0] for dotted, _, _ in imports(path)}
            assert others <= sys.stdlib_module_names


def test_the_package_itself_imports_nothing():
    assert imports(PACKAGE / "__init__.py") == []


def test_every_file_names_its_licence():
    roots = [PACKAGE, pathlib.Path(__file__).parent]
    for path in (path for root in roots for path in root.rglob("*.py")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first == "# SPDX-License-Identifier: Apache-2.0", path


def run(code: str) -> str:
    """Output of code in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_neither_jax_nor_tensorflow():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['midjax', '--help']\n"
        "try: runpy.run_module('midjax', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "print('LOADED', *sorted(name for name in sys.modules if '.' not in name))\n"
    )
    text, _, loaded = run(code).partition("LOADED")
    assert "midjax show VERB" in text
    heavy = {"jax", "jaxlib", "tensorflow", "torch", "transformers", "flax", "orbax", "matplotlib"}
    assert not heavy & set(loaded.split())


def test_loading_a_recipe_needs_no_accelerator_library():
    loaded = run("import sys; from midjax import config; print(*sys.modules)").split()
    assert "gin" in loaded and not {"jax", "tensorflow", "torch"} & set(loaded)


def test_what_trains_loads_what_it_need_not_wait_for_later():
    """Orbax, Grain, PyArrow and Pallas take half a second, in which a step may be compiled."""
    code = "import sys, midjax.train.loop; print(*sys.modules)"
    loaded = set(run(code).split())
    assert {"midjax.checkpoint", "midjax.batches.ahead", "midjax.model.attention"} <= loaded
    assert not {"orbax.checkpoint", "grain", "pyarrow", "midjax.model.splash"} & loaded
    assert not [name for name in loaded if name.startswith("jax.experimental.pallas.ops")]


def test_readers_of_corpora_need_neither_jax_nor_tensorflow():
    loaded = run("import sys; from midjax.corpora import sources; print(*sys.modules)").split()
    assert "midjax.corpora.parquet" in loaded
    assert not {"jax", "pyarrow", "tensorflow", "tensorflow_datasets", "seqio", "datasets"} & set(
        loaded
    )


def test_seqio_and_tfds_are_installed_and_import_together():
    code = (
        "import seqio, tensorflow_datasets as tfds\n"
        "print(callable(seqio.SentencePieceVocabulary), callable(tfds.builder_from_directory))\n"
    )
    assert run(code).split()[-2:] == ["True", "True"]
