"""Entry point of `python -m lorakit` and of the `lorakit` script."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from lorakit.cli.signals import ending

        ending.install()  # before importing the commands, which takes a moment
    except KeyboardInterrupt:
        sys.exit(130)
    from lorakit.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
