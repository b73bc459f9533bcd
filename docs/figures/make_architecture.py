"""Draws the two pictures of docs/architecture.md as SVG files beside this script.

python docs/figures/make_architecture.py

Each picture has a light background of its own, so that it reads the same on a dark page.
"""

import pathlib
from collections.abc import Sequence
from html import escape

FOLDER = pathlib.Path(__file__).parent
INK, QUIET, PAPER = "#1f2933", "#52606d", "#fbfbf8"
BLUE, GREEN, SAND, ROSE, GREY = "#dbe9f6", "#dcefe0", "#f6ecd2", "#f7dfe0", "#e9ebee"
WIDTH = 700

HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {{height}}" \
font-family="Helvetica, Arial, sans-serif" fill="{INK}">
<title>{{title}}</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>
<rect width="{WIDTH}" height="{{height}}" rx="8" fill="{PAPER}"/>
"""


def text(x: float, y: float, words: str, size: float = 12, *, style: str = "", fill=INK) -> str:
    """Returns a line of text; ``style`` holds further attributes."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" {style}>{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, fill: str, title: str, lines: Sequence[str]) -> str:
    """Returns a rectangle with a bold title and smaller lines below it, all centred."""
    first = y + h / 2 + 4.5 - 7 * len(lines)
    middle = 'text-anchor="middle"'
    parts = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="{QUIET}"/>',
        text(x + w / 2, first, title, 13, style=f'{middle} font-weight="bold"'),
    ]
    for number, line in enumerate(lines, start=1):
        is_file = line.endswith(".py")
        style = f'{middle} font-family="Menlo, Consolas, monospace"' if is_file else middle
        size = 9 if is_file else 11
        parts.append(text(x + w / 2, first + 14.5 * number, line, size, style=style, fill=QUIET))
    return "\n".join(parts)


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """Returns a line through points, with a tip at the last one."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    return f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#tip)"{dash}/>'


FLOORS = (
    (8, BLUE, (("commands", "pretrain, finetune, segment, evaluate, export, ..."),)),
    (7, BLUE, (("hooks/", "beside training"), ("evaluators/", "tasks of evaluate"))),
    (
        6,
        GREEN,
        (("builders/", "config to objects"), ("jobs/", "run of a job"), ("figures/", "pictures")),
    ),
    (5, GREEN, (("evaluation/", "quality of features"), ("aot/", "cost on absent devices"))),
    (4, SAND, (("training/", "loop, step, state"), ("config/", "keys and their checks"))),
    (3, ROSE, (("methods/", "what is predicted, against what"),)),
    (2, ROSE, (("models/", "networks in Flax"),)),
    (1, GREY, (("mathematics", "masking, distance, dynamic_loss, patches, suggestions"),)),
)


def rooms() -> str:
    """Returns the picture of the rooms and of the directions of imports."""
    left, right, height, gap, top = 58, 508, 42, 9, 30
    parts = [
        HEAD.format(height=450, title="The rooms of ddae_jax, by floor"),
        text(10, 19, "floor", 11, fill=QUIET),
        text(left, 19, "imports go down only", 11, fill=QUIET),
    ]
    for row, (floor, fill, names) in enumerate(FLOORS):
        y = top + row * (height + gap)
        end = WIDTH - 14 if floor == 1 else right
        width = (end - left - gap * (len(names) - 1)) / len(names)
        parts.append(text(18, y + height / 2 + 4, str(floor), 13, fill=QUIET))
        for column, (name, words) in enumerate(names):
            parts.append(box(left + column * (width + gap), y, width, height, fill, name, [words]))
    bottom = top + 7 * (height + gap)
    parts.append(arrow((44, top), (44, bottom + height)))
    x, w = right + 50, WIDTH - 14 - right - 50
    for column, (name, words) in enumerate(
        (("data/", ("images, labels,", "batches")), ("interop/", ("weights of", "other libraries")))
    ):
        parts.append(box(x, top + column * 124, w, 115, GREY, name, words))
    for row in range(5):
        y = top + row * (height + gap) + height / 2
        parts.append(arrow((right + 4, y), (x - 5, y)))
    parts.append(arrow((x + w / 2, top + 243), (x + w / 2, bottom - 5)))
    parts.append(
        text(right + 12, top + 5 * (height + gap) + 12, "from floors 4 to 8", 11, fill=QUIET)
    )
    return "\n".join([*parts, "</svg>\n"])


def batch() -> str:
    """Returns the picture of a batch's way from files to the loss, for DDAE."""
    columns, w, h = [20, 157, 294, 431, 568], 112, 58
    rows = [42, 190, 288, 386]
    center = [x + w / 2 for x in columns]
    middle = [y + h / 2 for y in rows]

    def panel(y: float, height: float, words: str) -> str:
        frame = f'<rect x="8" y="{y}" width="684" height="{height}" rx="8" fill="none" '
        return frame + f'stroke="#cbd2d9"/>\n{text(20, y + 19, words, 11, fill=QUIET)}'

    def place(column: int, row: int, fill: str, title: str, *lines: str) -> str:
        return box(columns[column], rows[row], w, h, fill, title, lines)

    def across(row: int, first: int) -> str:
        return arrow((columns[first] + w, middle[row]), (columns[first + 1] - 2, middle[row]))

    parts = [
        HEAD.format(height=500, title="The way of a batch from files to the loss"),
        panel(12, 100, "on the host, each process its share"),
        panel(150, 338, "on the devices, one compiled step: training/program.py"),
        place(0, 0, BLUE, "file", "data/sources.py"),
        place(1, 0, BLUE, "decode", "data/images.py"),
        place(2, 0, BLUE, "augment", "data/augment.py"),
        place(3, 0, BLUE, "batch", "data/train_loader.py"),
        place(4, 0, BLUE, "to devices", "training/sharding.py"),
        *(across(0, first) for first in range(4)),
        arrow(
            (center[4], rows[0] + h), (center[4], 131), (14, 131), (14, middle[2]), (18, middle[2])
        ),
        place(1, 1, SAND, "teacher", "the whole image", "models/vit.py"),
        place(2, 1, SAND, "targets", "pixels, features", "methods/features.py"),
        place(0, 2, GREEN, "images", "B H W C", "patches.py"),
        place(1, 2, GREEN, "encoder", "visible patches", "models/vit.py"),
        place(2, 2, GREEN, "decoder", "hidden patches", "models/decoder.py"),
        place(3, 2, ROSE, "errors", "O S B N", "methods/method.py"),
        place(4, 2, ROSE, "loss", "O S", "dynamic_loss.py"),
        place(0, 3, GREY, "mask", "B N", "masking.py"),
        place(1, 3, GREY, "distance map", "B N", "distance.py"),
        place(2, 3, GREY, "weights", "O S B N", "dynamic_loss.py"),
        *(across(2, first) for first in range(4)),
        across(1, 1),
        across(3, 0),
        across(3, 1),
        arrow((center[0], rows[2]), (center[0], middle[1]), (columns[1] - 2, middle[1])),
        arrow((columns[2] + w, middle[1]), (center[3], middle[1]), (center[3], rows[2] - 2)),
        arrow((columns[2] + w, middle[3]), (center[4], middle[3]), (center[4], rows[2] + h + 2)),
        arrow(
            (center[0], rows[3]), (center[0], 366), (center[1], 366), (center[1], rows[2] + h + 2)
        ),
        arrow((center[1], rows[2]), (center[1], rows[1] + h + 2), dashed=True),
        text(center[1] + 8, rows[1] + h + 24, "moving average, no gradient", 11, fill=QUIET),
        text(columns[3] + 3, middle[3] - 6, "distance ** beta", 11, fill=QUIET),
        text(20, 474, "B images, N patches, O objectives, S supervised depths", 11, fill=QUIET),
    ]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Writes both pictures."""
    (FOLDER / "rooms.svg").write_text(rooms())
    (FOLDER / "batch.svg").write_text(batch())


if __name__ == "__main__":
    main()
