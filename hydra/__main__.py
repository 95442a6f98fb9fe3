"""The front door: `python -m hydra COMMAND`."""

from hydra.cli import main

if __name__ == "__main__":
    main()
