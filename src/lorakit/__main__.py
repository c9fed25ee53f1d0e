"""`python -m lorakit` is the command `lorakit`."""

from lorakit.cli.main import main

if __name__ == "__main__":
    main()
