"""``python -m passportize.cli`` is the command line."""

from passportize.cli import main

if __name__ == "__main__":
    main()
