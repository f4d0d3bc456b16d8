"""``python -m passportize`` is the command line."""

from passportize.cli import main

if __name__ == "__main__":
    main()
