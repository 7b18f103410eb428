# SPDX-License-Identifier: Apache-2.0
"""Configuration: gin files and `--gin.Class.field=value` -> one checked tree of frozen dataclasses.

    files, command line -> bindings -> gin: classes, scopes -> strict.build -> root object
    root object -> show, config.gin, config.json -> root object

The only module that imports gin. Gin parses the text and resolves scopes; the classes are
constructed once, in `strict.build`, so that what plain gin accepts in silence is an error:
misspelled macros and scopes, bindings without effect, wrong types, doubled bindings. Classes are
registered, never made configurable, and gin is cleared before and after each load: nothing from
outside can change a tree.
"""

# gin-config 0.5.0 uses importlib.util without importing it, and dies with an AttributeError where
# nothing else has imported it.
import importlib.util  # isort: skip
import os
import platform
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser

import midjax
from midjax import files
from midjax.strict import build, fields, places, text

ConfigError = fields.ConfigError
to_json, from_json, from_plain = fields.to_json, fields.from_json, fields.from_plain
changes, show = fields.changes, text.show
gin_root = places.gin_root

# verb -> "module:class" of its root. A module is imported when its verb is loaded, not before, so
# that `midjax --help` imports neither jax nor tensorflow.
ROOTS = {
    "tokenize": "midjax.batches.tokenize:Tokenize",
    "import": "midjax.importing.recipe:Import",
    "train": "midjax.train.recipe:Train",
    "branch": "midjax.branch.recipe:Branch",
    "average": "midjax.average.recipe:Average",
    "eval": "midjax.evals.recipe:Eval",
    "export": "midjax.export:Export",
    "report": "midjax.report.page:Report",
    "plan": "midjax.plan.recipe:Plan",
    "launch": "midjax.launch.spec:Launch",
}
_NAME = r"[A-Za-z_]\w*"
_KEY = re.compile(rf"(?:({_NAME}(?:/{_NAME})*)/)?({_NAME})(?:\.({_NAME}))?")
# StopIteration: gin's parser lets it out when the text ends inside a statement.
_PARSE_ERRORS = (
    SyntaxError,
    tokenize.TokenError,
    StopIteration,
    RuntimeError,
    ValueError,
    TypeError,
)
_Bindings = dict[tuple[str, str, str], build.Binding]


def root_class(verb: str) -> type:
    """The root class of a verb, imported now."""
    if verb not in ROOTS:
        raise ConfigError(f"The verb {verb!r} takes no recipe; {', '.join(ROOTS)} do.")
    module, _, name = ROOTS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


def load(verb: str, gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> Any:
    """The root object of a verb.

    Args:
      verb: a key of `ROOTS`.
      gin_files: as given, else relative to midjax's gin/; a later file overrides an earlier one.
      bindings: `Class.field=value`, `scope/Class.field=value` or `MACRO=value`, over all files. A
        value that is not a literal or a reference is taken as a string: paths need no quotes.

    Raises:
      ConfigError: unknown, dead, doubled or missing bindings, values that do not fit their fields,
        files that cannot be read, `import` lines, includes from elsewhere.
    """
    gathered = _gather(gin_files, bindings)  # first: a wrong path needs no import of jax to be told
    return _assemble(root_class(verb), gathered)


def load_class(root: type, gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> Any:
    """`load` for any dataclass as the root."""
    return _assemble(root, _gather(gin_files, bindings))


def _gather(gin_files: Sequence[str], bindings: Sequence[str]) -> _Bindings:
    """What holds after files and command line, by key; names are not looked at yet."""
    reader = _Files()
    merged: _Bindings = {}
    for name in gin_files:
        merged |= reader.read(places.find_file(name))
    overrides: _Bindings = {}
    for line in bindings:
        _add(overrides, _parse_override(line))
    return merged | overrides


def _assemble(root: type, merged: _Bindings) -> Any:
    """The root object of the bindings. Gin holds them meanwhile, and decides on scopes."""
    classes = fields.components(root)
    builder = build.Build(root, classes, list(merged.values()), _bound)
    gin.clear_config()
    try:
        for name, cls in classes.items():
            gin.register(name, module=cls.__module__)(cls)
        for binding in merged.values():
            if binding.field:
                selector = _selector(classes[binding.name])
                gin.bind_parameter((binding.scope, selector, binding.field), binding)
        return builder.root()
    finally:
        gin.clear_config()


def _selector(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def _bound(cls: type, scope: str) -> Mapping[str, build.Binding]:
    key = f"{scope}/{_selector(cls)}" if scope else _selector(cls)
    return gin.get_bindings(key, resolve_references=False)


def save(root: Any, run_dir: str | os.PathLike[str]) -> None:
    """Writes `config.json` (what eval, export and resume read) and `config.gin` (for people)."""
    verb = _verb(root)
    jax = sys.modules.get("jax")
    record = {
        "midjax": midjax.__version__,
        "verb": verb,
        "python": platform.python_version(),
        "jax": getattr(jax, "__version__", None),
        "config": to_json(root),
    }
    folder = files.path(run_dir)
    header = (
        f"# The configuration of this run, every field written out (midjax {midjax.__version__}).\n"
        f"#   midjax {verb or 'VERB'} --gin_file={folder / 'config.gin'}\n\n"
    )
    files.write_text(folder / "config.gin", header + text.gin(root))
    files.write_json(folder / "config.json", record)


def save_model(model: Any, run_dir: str | os.PathLike[str]) -> None:
    """Writes `model.gin`: what `@TransformerConfig()` is, for recipes that start from the run."""
    place = files.path(run_dir) / "model.gin"
    header = f"# The model of {run_dir}: midjax train --gin_file=RECIPE --gin_file={place}\n\n"
    files.write_text(place, header + text.gin(model))


def _verb(root: Any) -> str | None:
    """The verb whose root this is."""
    place = f"{type(root).__module__}:{type(root).__name__}"
    return {place: verb for verb, place in ROOTS.items()}.get(place)


def read(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that `save` wrote: versions, verb, and the tree under "config" for `from_json`."""
    place = files.path(run_dir) / "config.json"
    if not place.is_file():
        raise ConfigError(f"No config.json in {run_dir}: not the folder of a midjax run.")
    record = files.read_json(place)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ConfigError(f"{place} was not written by midjax: it has no object under 'config'.")
    return record


def load_run(run_dir: str | os.PathLike[str], verb: str) -> Any:
    """The root that a run of `verb` was started with, from its `config.json`."""
    record = read(run_dir)
    if record["verb"] != verb:
        raise ConfigError(f"{run_dir} is a run of {record['verb']!r}; a run of {verb!r} is needed.")
    return from_json(root_class(verb), record["config"])


def guard_resume(root: Any, run_dir: str | os.PathLike[str], loose: Sequence[str]) -> list[str]:
    """Compares a root with the one saved in `run_dir`, if there is one.

    Args:
      root: what is asked for now.
      run_dir: folder of the run.
      loose: paths that may change, with everything below them, such as "mesh" or "model.remat".

    Returns:
      One line per loose path that changed.

    Raises:
      ConfigError: anything else changed; names each field with its old and new value.
    """
    if not (files.path(run_dir) / "config.json").is_file():
        return []
    record = read(run_dir)
    if (asked := _verb(root)) != record.get("verb"):
        raise ConfigError(
            f"{run_dir} was written by `midjax {record.get('verb')}`, not by `midjax {asked}`. "
            "Give this run another folder."
        )
    allowed: list[str] = []
    refused: list[str] = []
    for path, old, new in changes(record["config"], to_json(root)):
        may = any(re.match(rf"{re.escape(name)}(?![\w])", path) for name in loose)
        (allowed if may else refused).append(f"{path}: {old!r} -> {new!r}")
    if refused:
        listed = "\n  ".join(refused)
        raise ConfigError(
            f"{run_dir} holds a run with another configuration:\n  {listed}\n"
            "Resume it with the configuration that it began with, or start in a new folder."
        )
    return allowed


# ---- the command line ----


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Arguments -> (gin files, bindings such as `Class.field=value`, everything else in order)."""
    gin_files, bindings, rest = [], [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--gin_file":
            gin_files.append(next(arguments, ""))
        elif argument.startswith("--gin_file="):
            gin_files.append(argument.partition("=")[2])
        elif argument.startswith("--gin."):
            if "=" not in argument:
                raise ConfigError(
                    f"{argument} has no value: write {argument}=VALUE, without spaces."
                )
            bindings.append(argument.removeprefix("--gin."))
        elif argument.startswith("--gin"):
            raise ConfigError(f"{argument}: write --gin_file=FILE or --gin.Class.field=VALUE.")
        else:
            rest.append(argument)
    if any(not name or name.startswith("--") for name in gin_files):
        raise ConfigError("--gin_file needs a file: --gin_file=FILE.")
    return gin_files, bindings, rest


def _parse_override(line: str) -> build.Binding:
    key, _, given = line.partition("=")
    parts, given = _KEY.fullmatch(key), given.strip()
    if not parts:
        raise ConfigError(
            f"--gin.{line} is not a binding: write --gin.Class.field=value, "
            "--gin.scope/Class.field=value or --gin.MACRO=value."
        )
    if not given:
        raise ConfigError(f"--gin.{key} has no value; the empty string is --gin.{key}='\"\"'.")
    bare = False
    try:
        value = _Parser(given).only_value()
    except _PARSE_ERRORS as error:
        if given[0] in "@%([{'\"":
            raise ConfigError(f"--gin.{line}: {_reason(error)}.") from None
        value, bare = given, True
    scope, name, field = (part or "" for part in parts.groups())
    return build.Binding(scope, name, field, value, build.COMMAND_LINE, bare)


# ---- files ----


class _Files:
    """Reads files with their includes. A file that two others include is read once."""

    def __init__(self) -> None:
        self._done: dict[Any, _Bindings] = {}
        self._open: list[Any] = []

    def read(self, path: Any) -> _Bindings:
        """A file's own bindings over those of the files that it includes."""
        if path in self._open:
            circle = " -> ".join(map(str, [*self._open, path]))
            raise ConfigError(f"A gin file includes itself: {circle}.")
        if path not in self._done:
            self._open.append(path)
            self._done[path] = self._read(path)
            self._open.pop()
        return self._done[path]

    def _read(self, path: Any) -> _Bindings:
        own: _Bindings = {}
        included: _Bindings = {}
        clashes: list[build.Binding] = []
        for where, statement in _statements(path):
            if isinstance(statement, config_parser.ImportStatement):
                raise ConfigError(
                    f"{where}: `import {statement.module}` is refused: a gin file runs no code, "
                    "and midjax knows its classes without imports. Remove the line."
                )
            if isinstance(statement, config_parser.IncludeStatement):
                if own:
                    raise ConfigError(f"{where}: includes stand before all bindings: move it up.")
                inner = self.read(places.find_include(statement.filename, path, where))
                clashes += [b for key, b in inner.items() if included.get(key, b) is not b]
                included |= inner
            elif isinstance(statement, config_parser.BindingStatement):
                names = statement.scope, statement.selector, statement.arg_name
                _add(own, build.Binding(*names, statement.value, where))
        for binding in clashes:
            if binding.key not in own:
                raise ConfigError(
                    f"{binding} is bound by more than one file that {path} includes, last in "
                    f"{binding.where}. Bind it in {path} to say which value holds."
                )
        return included | own


def _add(bindings: _Bindings, binding: build.Binding) -> None:
    first = bindings.setdefault(binding.key, binding)
    if first is not binding:
        both = " and ".join(dict.fromkeys((first.where, binding.where)))
        raise ConfigError(f"{binding} is bound twice ({both}). Keep one.")


# ---- gin text ----


class _Delegate(config_parser.ParserDelegate):
    """Only notes references down: names are looked up when everything has been read."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return build.Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Any:
        return build.Macro(macro_name)


class _Parser(config_parser.ConfigParser):
    """Gin's parser, but that a doubled key of a dict is an error: gin lets the last one win."""

    def __init__(self, gin_text: str) -> None:
        self._keys: list[set[str]] = []
        super().__init__(gin_text, _Delegate())

    def only_value(self) -> Any:
        """The value that the whole text is."""
        value = self.parse_value()
        if self.current_token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            raise SyntaxError(f"{self.current_token.string!r} after the value")
        return value

    def _maybe_parse_container(self) -> Any:
        self._keys.append(set())
        try:
            return super()._maybe_parse_container()
        finally:
            self._keys.pop()

    def _parse_dict_item(self) -> Any:
        key, value = super()._parse_dict_item()
        if not isinstance(key, str):
            self._raise_syntax_error(f"the key {key!r} of a dict is not a string")
        if key in self._keys[-1]:
            self._raise_syntax_error(f"the key {key!r} is given twice")
        self._keys[-1].add(key)
        return key, value


def _statements(path: Any) -> Iterator[tuple[str, Any]]:
    """Every statement of a file with its `file:line`."""
    parser, line = None, 1
    while True:
        try:
            parser = parser or _Parser(path.read_text(encoding="utf-8"))
            statement = parser.parse_statement()
        except _PARSE_ERRORS as error:
            if isinstance(error, tokenize.TokenError):
                line = error.args[1][0]
            line = getattr(error, "lineno", None) or line
            raise ConfigError(f"{path}:{line}: {_reason(error)}.") from None
        if statement is None:
            return
        line = statement.location.line_num
        yield f"{path}:{line}", statement


def _reason(error: BaseException) -> str:
    """What is wrong with gin text, in the user's terms where gin's mislead."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    message = str(error.args[0]) if error.args else "a statement is cut off"
    word = re.search(r"Failed to parse token '(.*)'", message)
    if not word:
        return message.strip().splitlines()[0].rstrip(".")
    proper = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(word[1].lower())
    if proper:
        return f"{word[1]} is not a value: write {proper}"
    return f"{word[1]} is not a value: strings need quotes"
