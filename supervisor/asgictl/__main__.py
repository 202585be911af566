"""``python -m asgictl`` is the same as ``asgictl``."""

from asgictl.cli import main

if __name__ == "__main__":
    main()
