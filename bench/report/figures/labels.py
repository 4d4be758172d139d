"""Names beside the ends of lines, pushed apart until they do not collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from bench.report.figures.style import SMALL


@dataclass(frozen=True, slots=True)
class End:
    """Where a line ends, in the axes' units, and what it is called."""

    x: float
    y: float
    text: str
    colour: str


_LEADER = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0, "relpos": (0.0, 0.5)}


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as close as can be to the ``wanted`` ones, in their order, ``gap`` apart, within
    ``low`` and ``high`` if there is room for all."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    # Each group of places that touch moves as one, to the mean of what its members want.
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _start(groups[-2], wanted, gap, low, high) + gap * len(
            groups[-2]
        ) > _start(groups[-1], wanted, gap, low, high):
            groups[-2:] = [groups[-2] + groups[-1]]
    found = [0.0] * len(wanted)
    for group in groups:
        start = _start(group, wanted, gap, low, high)
        for place, i in enumerate(group):
            found[i] = start + gap * place
    return found


def _start(
    group: Sequence[int], wanted: Sequence[float], gap: float, low: float, high: float
) -> float:
    middle = sum(wanted[i] - gap * place for place, i in enumerate(group)) / len(group)
    return max(min(middle, high - gap * (len(group) - 1)), low)


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Writes the names to the right of the axes, each at the height of its line's end, with a thin
    line to it where it had to move. The axes' limits must be final."""
    if not ends:
        return
    height = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    gap = 1.35 * SMALL / 72 / height
    heights = [_height(axes, end.y) for end in ends]
    for end, own, moved in zip(ends, heights, spread(heights, gap, 0.0, 1.0), strict=True):
        axes.annotate(
            end.text,
            xy=(1.0, own),
            xytext=(1.04, moved),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=end.colour,
            fontsize=SMALL,
            fontweight="bold",
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops=_LEADER | {"color": end.colour} if abs(moved - own) > gap / 3 else None,
        )


def _height(axes: Axes, y: float) -> float:
    """As a fraction of the axes' height; what lies outside of them is at their edge."""
    point = axes.transData.transform((axes.get_xlim()[0], y))
    return min(1.0, max(0.0, float(axes.transAxes.inverted().transform(point)[1])))


@dataclass(frozen=True, slots=True)
class Box:
    """A place that is taken, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The box with this middle."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def x_middle(self) -> float:
        """Between left and right."""
        return (self.left + self.right) / 2

    @property
    def y_middle(self) -> float:
        """Between bottom and top."""
        return (self.bottom + self.top) / 2

    def overlaps(self, other: Box) -> bool:
        """Whether they have a point in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Whether the other one lies within."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


_AROUND = ((1, 0.6), (0, 1), (-1, 0.6), (1, -0.6), (0, -1), (-1, -0.6), (1, 0), (-1, 0))


def free_place(
    x: float,
    y: float,
    width: float,
    height: float,
    away: float,
    taken: Sequence[Box],
    inside: Box,
) -> Box | None:
    """Where beside a point a text of this size hides nothing; None where there is no such place.

    ``away``: the least distance of the point from the text; twice that is tried as well.
    """
    for distance in (away, 2 * away):
        for right, up in _AROUND:
            box = Box.around(
                x + right * (distance + width / 2), y + up * (distance + height / 2), width, height
            )
            if inside.holds(box) and not any(box.overlaps(other) for other in taken):
                return box
    return None
