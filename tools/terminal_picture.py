"""Draw what a command printed in a terminal, or some lines of it, as an SVG picture.

FORCE_COLOR=1 COLUMNS=100 lorakit quickstart > output.txt
python tools/terminal_picture.py output.txt "lorakit quickstart" docs/images/terminal.svg 7-40
"""

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 124

_REDRAWN = re.compile(r"\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A")
_FONTS = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # they lie on another server


def final_lines(output: str) -> list[str]:
    r"""Return the lines that stay on the screen: of a line that is redrawn, its last state.

    >>> final_lines("working 1%\rworking 2%\rdone\nnext\n")
    ['done', 'next']
    """
    lines = []
    for line in output.rstrip("\n").split("\n"):
        states = [state for state in _REDRAWN.sub("\r", line).split("\r") if state]
        lines.append(states[-1] if states else "")
    return lines


def main() -> None:
    """Write the picture."""
    source, command, target, numbers = sys.argv[1:]
    first, last = map(int, numbers.split("-"))
    lines = final_lines(Path(source).read_bytes().decode())  # as text, \r would become \n
    selected = [*(["..."] if first > 1 else []), *lines[first - 1 : last]]
    selected += ["..."] if last < len(lines) else []
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    for line in (f"$ {command}", *selected):
        console.print(Text.from_ansi(line))
    picture = _FONTS.sub("", console.export_svg(title="lorakit"))
    Path(target).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
