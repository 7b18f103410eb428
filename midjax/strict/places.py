# SPDX-License-Identifier: Apache-2.0
"""Where gin files are, and where they may include from."""

import pathlib
from typing import Any

import midjax
from midjax import files
from midjax.strict import fields


def gin_root() -> pathlib.Path:
    """The folder of the recipes: `midjax/gin` in an installed wheel, `gin/` in a checkout."""
    package = pathlib.Path(midjax.__file__).resolve().parent
    for folder in (package / "gin", package.parent / "gin"):
        # site-packages/gin is gin-config itself. The folder of the recipes has no __init__.py.
        if folder.is_dir() and not (folder / "__init__.py").exists():
            return folder
    raise fields.ConfigError(f"midjax's gin/ is neither in {package} nor beside it.")


def find_file(name: str) -> Any:
    """A gin file as given (on disk or in a bucket), else relative to midjax's gin/."""
    if "://" in name:
        tried = [files.path(name)]
    else:
        given = pathlib.Path(name).expanduser()
        tried = [given.absolute()]
        if not given.is_absolute():
            tried.append(gin_root() / name.removeprefix("gin/"))
    for path in tried:
        if path.is_file():
            return path if "://" in name else path.resolve()
    looked = " and ".join(dict.fromkeys(map(str, tried)))
    raise fields.ConfigError(f"No gin file {name!r}. Looked for {looked}.")


def find_include(name: str, owner: Any, where: str) -> pathlib.Path:
    """A file that `owner` includes at `where`: from its own folder or from midjax's gin/."""
    if not isinstance(owner, pathlib.Path):
        raise fields.ConfigError(f"{where}: include {name!r}: a file in a bucket cannot include.")
    folders = (owner.parent, gin_root().resolve())
    tried = [folder / name for folder in folders]
    inside = [path for path in tried if any(path.resolve().is_relative_to(f) for f in folders)]
    for path in tried:
        if path in inside and path.is_file():
            return path.resolve()
        if path.is_file() or not inside:
            raise fields.ConfigError(
                f"{where}: include {name!r} is refused: files may be included from {folders[0]} "
                f"and {folders[1]} only."
            )
    looked = " and ".join(dict.fromkeys(map(str, inside)))
    raise fields.ConfigError(f"{where}: no file to include as {name!r}. Looked for {looked}.")
