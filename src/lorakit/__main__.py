"""`python -m lorakit` is the command `lorakit`."""

import sys


def main() -> None:
    """Run the command line; the entry point of the `lorakit` script."""
    try:
        from lorakit.cli.signals import ending

        ending.install()  # before the imports of the commands, which take a moment
    except KeyboardInterrupt:
        sys.exit(130)
    from lorakit.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
