"""``python -m pqnet`` is the command line."""

from pqnet.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
