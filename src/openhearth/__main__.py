"""`python -m openhearth` is `hearth`."""

from openhearth.cli import main

if __name__ == "__main__":
    main()
