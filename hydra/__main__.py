"""The front door: `python -m hydra COMMAND`.

Python looks for modules first where we happen to stand, and that may be the directory of a model: nothing is imported
from there. What has come this far was imported by Python itself before anybody could say so.
"""

# ruff: noqa: PTH100, PTH120 - pathlib would be looked for there too
import os
import sys

if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from hydra.cli.main import main

if __name__ == "__main__":
    main()
