"""Rotated boxes: the area common to two of them and its derivatives, as csrc/common/rotated_box.h.

A box is a tuple (cx, cy, width, height, cos, sin); all tensors broadcast. It turns counterclockwise
as seen, with y pointing down. A box in the frame of another is (cx, cy, wx, wy, hx, hy, cos, sin,
half width and half height, and those of the other). A sized box has three more than a box: its
area, bottom and top; a solid box stands upright, has a volume for an area, and turns the other way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .angles import cosine_and_sine
from .box_pairs import share_of_minimum
from .scalars import divide

MIN_AREA = tl.constexpr(1e-14)  # or volume
DEGREES = tl.constexpr(57.29577951308232)  # of a radian


@triton.jit
def load_rotated_box(ptr, mask, DOUBLE: tl.constexpr):
    """(cx, cy, width, height, cos, sin) of (center, width, height, degrees) at ``ptr``; a unit box
    where ``mask`` is false."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    cx = tl.load(ptr, mask=mask, other=0.0).to(dtype)
    cy = tl.load(ptr + 1, mask=mask, other=0.0).to(dtype)
    width = tl.load(ptr + 2, mask=mask, other=1.0).to(dtype)
    height = tl.load(ptr + 3, mask=mask, other=1.0).to(dtype)
    cos, sin = cosine_and_sine(tl.load(ptr + 4, mask=mask, other=0.0).to(dtype))
    return cx, cy, width, height, cos, sin


@triton.jit
def load_sized_box(ptr, mask, SOLID: tl.constexpr, DOUBLE: tl.constexpr):
    """A sized box at ``ptr``, or a solid one (center, width, height, depth, radians); a unit box
    where ``mask`` is false."""
    if SOLID:
        dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        cx = tl.load(ptr, mask=mask, other=0.0).to(dtype)
        cy = tl.load(ptr + 1, mask=mask, other=0.0).to(dtype)
        cz = tl.load(ptr + 2, mask=mask, other=0.0).to(dtype)
        width = tl.load(ptr + 3, mask=mask, other=1.0).to(dtype)
        height = tl.load(ptr + 4, mask=mask, other=1.0).to(dtype)
        depth = tl.load(ptr + 5, mask=mask, other=1.0).to(dtype)
        cos, sin = cosine_and_sine(tl.load(ptr + 6, mask=mask, other=0.0).to(dtype) * -DEGREES)
        empty = (width <= 0) | (height <= 0) | (depth <= 0)
        volume = tl.where(empty, 0.0, width * height * depth)
        return cx, cy, width, height, cos, sin, volume, cz - depth / 2, cz + depth / 2
    else:
        cx, cy, width, height, cos, sin = load_rotated_box(ptr, mask, DOUBLE)
        return cx, cy, width, height, cos, sin, width * height, cx, cx


@triton.jit
def upright_extent(b):
    """Half of the width and height of the upright box around a rotated one."""
    width, height, cos, sin = b[2], b[3], b[4], b[5]
    x = (tl.abs(width * cos) + tl.abs(height * sin)) / 2
    y = (tl.abs(width * sin) + tl.abs(height * cos)) / 2
    return x, y


@triton.jit
def seen_from(a, b):
    """The box b in the frame of a."""
    ax, ay, a_width, a_height, a_cos, a_sin = a
    bx, by, b_width, b_height, b_cos, b_sin = b
    dx = bx - ax
    dy = by - ay
    cx = dx * a_cos - dy * a_sin
    cy = dx * a_sin + dy * a_cos
    cos = a_cos * b_cos + a_sin * b_sin
    sin = b_sin * a_cos - b_cos * a_sin
    across = tl.abs(b_width) / 2
    along = tl.abs(b_height) / 2
    half_width = tl.abs(a_width) / 2
    half_height = tl.abs(a_height) / 2
    return (
        cx, cy, across * cos, -across * sin, along * sin, along * cos, cos, sin,
        across, along, half_width, half_height,
    )  # fmt: skip


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _edge_integral(x0, y0, x1, y1, slope, width, height):
    """Integral of y dx from (x0, y0) to (x1, y1), where x counts only from -width to width and y is
    clamped to the heights from -height to height."""
    start = _clamp(x0, -width, width)
    end = _clamp(x1, -width, width)
    lowest = tl.minimum(y0, y1)
    highest = tl.maximum(y0, y1)
    ya = _clamp(y0 + (start - x0) * slope, lowest, highest)
    yb = _clamp(y1 + (end - x1) * slope, lowest, highest)
    low = tl.minimum(ya, yb)
    high = tl.maximum(ya, yb)
    low_inside = _clamp(low, -height, height)
    high_inside = _clamp(high, -height, height)
    middle = (low_inside + high_inside) / 2
    rise = high - low
    below = tl.minimum(high, -height) - tl.minimum(low, -height)
    above = tl.maximum(high, height) - tl.maximum(low, height)
    weighted = height * (above - below) + middle * (high_inside - low_inside)
    level = rise <= 0
    mean = tl.where(level, middle, divide(weighted, tl.where(level, 1.0, rise)))
    return (end - start) * mean


@triton.jit
def _slope(rise, run):
    vertical = run == 0
    return tl.where(vertical, 0.0, divide(rise, tl.where(vertical, 1.0, run)))


@triton.jit
def _boxes_cross(frame):
    """Whether a box in a frame and the frame's own share more than a border: no side of one has all
    of the other beyond it."""
    cx, cy, wx, wy, hx, hy, cos, sin, across, along, width, height = frame
    # between the centers, along the sides of the second box
    u = cx * cos - cy * sin
    v = cx * sin + cy * cos
    cos, sin = tl.abs(cos), tl.abs(sin)
    return (
        (tl.abs(cx) < width + tl.abs(wx) + tl.abs(hx))
        & (tl.abs(cy) < height + tl.abs(wy) + tl.abs(hy))
        & (tl.abs(u) < across + width * cos + height * sin)
        & (tl.abs(v) < along + width * sin + height * cos)
    )


@triton.jit
def intersection_area(frame):
    """Area common to a box in a frame and the frame's own: the sum of integrals along the edges of
    one, of y clamped to the other. 0 where it is not finite, and without a rounding error where the
    boxes are apart."""
    cx, cy, wx, wy, hx, hy, _, _, _, _, width, height = frame
    x0, y0 = cx - wx - hx, cy - wy - hy
    x1, y1 = cx + wx - hx, cy + wy - hy
    x2, y2 = cx + wx + hx, cy + wy + hy
    x3, y3 = cx - wx + hx, cy - wy + hy
    along = _slope(wy, wx)
    across = _slope(hy, hx)
    total = _edge_integral(x0, y0, x1, y1, along, width, height)
    total += _edge_integral(x1, y1, x2, y2, across, width, height)
    total += _edge_integral(x2, y2, x3, y3, along, width, height)
    total += _edge_integral(x3, y3, x0, y0, across, width, height)
    # y points down, so the way from corner to corner has the area on its right
    return tl.where((total <= 0) & (total > -float("inf")) & _boxes_cross(frame), 0.0 - total, 0.0)


@triton.jit
def _narrow(start, step, limit, t0, t1):
    """The part [t0, t1] of an edge from ``start`` along ``step`` that is between +-limit."""
    level = step == 0
    safe = tl.where(level, 1.0, step)
    ta = divide(-limit - start, safe)
    tb = divide(limit - start, safe)
    # an edge along the border is inside or outside as a whole
    first = tl.where(level, t0, tl.minimum(ta, tb))
    last = tl.where(level, tl.where(tl.abs(start) <= limit, t1, t0), tl.maximum(ta, tb))
    return tl.maximum(first, t0), tl.minimum(last, t1)


@triton.jit
def _edge_forces(frame, x, y, step_x, step_y, size, normal_x, normal_y):
    """Length of an edge inside of the frame's box, and its force and moments: moved along its
    outward normal, an edge adds its length to the area."""
    cx, cy, _, _, _, _, _, _, _, _, width, height = frame
    zero = tl.zeros_like(x)
    t0, t1 = _narrow(x, step_x, width, zero, zero + 1)
    t0, t1 = _narrow(y, step_y, height, t0, t1)
    some = t1 > t0
    length = tl.where(some, (t1 - t0) * size, 0.0)
    middle = tl.where(some, (t0 + t1) / 2, 0.0)
    mx = x + middle * step_x
    my = y + middle * step_y
    fx = length * normal_x
    fy = length * normal_y
    # a turn moves (x, y) along (y, -x)
    turn = fx * my - fy * mx
    turn_center = fx * (my - cy) - fy * (mx - cx)
    return length, fx, fy, fx * mx, fy * my, turn, turn_center


@triton.jit
def intersection_gradient(a, b, frame, area):
    """Derivatives of the common ``area`` by (cx, cy, width, height, angle in radians) of each box.

    Only edges of b are followed: the area does not change if both boxes move or turn together, and
    the divergence theorem gives the sides of a.
    """
    _, _, a_width, a_height, a_cos, a_sin = a
    _, _, b_width, b_height, _, _ = b
    cx, cy, wx, wy, hx, hy, cos, sin, _, _, _, _ = frame
    width = tl.abs(b_width) + tl.zeros_like(wx)
    height = tl.abs(b_height) + tl.zeros_like(wx)
    up, fx, fy, mx, my, turn, turn_center = _edge_forces(
        frame, cx - wx - hx, cy - wy - hy, 2 * wx, 2 * wy, width, -sin, -cos
    )
    right, fx2, fy2, mx2, my2, turn2, turn_center2 = _edge_forces(
        frame, cx + wx - hx, cy + wy - hy, 2 * hx, 2 * hy, height, cos, -sin
    )
    down, fx3, fy3, mx3, my3, turn3, turn_center3 = _edge_forces(
        frame, cx + wx + hx, cy + wy + hy, -2 * wx, -2 * wy, width, sin, cos
    )
    left, fx4, fy4, mx4, my4, turn4, turn_center4 = _edge_forces(
        frame, cx - wx + hx, cy - wy + hy, -2 * hx, -2 * hy, height, -cos, sin
    )
    force_x = fx + fx2 + fx3 + fx4
    force_y = fy + fy2 + fy3 + fy4
    # back from the frame of a
    move_x = force_x * a_cos + force_y * a_sin
    move_y = force_y * a_cos - force_x * a_sin
    sides = (right + left) / 2
    ends = (up + down) / 2
    of_b = (
        move_x,
        move_y,
        tl.where(b_width < 0, -sides, sides),
        tl.where(b_height < 0, -ends, ends),
        turn_center + turn_center2 + turn_center3 + turn_center4,
    )
    of_a = (
        -move_x,
        -move_y,
        divide(area - (mx + mx2 + mx3 + mx4), a_width + tl.zeros_like(area)),
        divide(area - (my + my2 + my3 + my4), a_height + tl.zeros_like(area)),
        -(turn + turn2 + turn3 + turn4),
    )
    return of_a, of_b


@triton.jit
def boxes_meet(a, b, SOLID: tl.constexpr):
    """Whether the upright boxes around two sized boxes meet and neither is empty."""
    ax, ay = upright_extent(a)
    bx, by = upright_extent(b)
    near = (tl.abs(a[0] - b[0]) <= ax + bx) & (tl.abs(a[1] - b[1]) <= ay + by)
    if SOLID:
        near = near & (a[7] <= b[8]) & (b[7] <= a[8])
    return near & (a[6] >= MIN_AREA) & (b[6] >= MIN_AREA)


@triton.jit
def rotated_overlap(a, b, mask, SOLID: tl.constexpr):
    """Intersection over union of sized boxes. The geometry is left out if no pair of ``mask``
    meets."""
    ax, ay, a_width, a_height, a_cos, a_sin, area_a, a_bottom, a_top = a
    bx, by, b_width, b_height, b_cos, b_sin, area_b, b_bottom, b_top = b
    first = (ax, ay, a_width, a_height, a_cos, a_sin)
    second = (bx, by, b_width, b_height, b_cos, b_sin)
    meets = boxes_meet(a, b, SOLID) & mask
    both = area_a + area_b
    result = tl.where(both == both, 0.0, float("nan")).to(both.dtype)
    if tl.max(tl.max(meets.to(tl.int32), 1), 0) > 0:
        inter = intersection_area(seen_from(first, second))
        if SOLID:
            inter *= tl.maximum(tl.minimum(a_top, b_top) - tl.maximum(a_bottom, b_bottom), 0.0)
            inter = tl.where(inter < float("inf"), inter, 0.0)
        result = tl.where(meets, divide(inter, both - inter), result)
    return tl.where((area_a < MIN_AREA) | (area_b < MIN_AREA), 0.0, result)


@triton.jit
def _times(meets, by_inter, of_inter):
    # a pair that is apart may have no derivative at all
    return tl.where(meets, by_inter * of_inter, 0.0)


@triton.jit
def overlap_gradient(a, b, meets, gradient, SOLID: tl.constexpr):
    """Derivatives of the overlap of sized boxes times ``gradient``, by (cx, cy, width, height,
    angle) or (cx, cy, cz, width, height, depth, angle) of each; 0 where not ``meets``."""
    ax, ay, a_width, a_height, a_cos, a_sin, area_a, a_bottom, a_top = a
    bx, by, b_width, b_height, b_cos, b_sin, area_b, b_bottom, b_top = b
    first = (ax, ay, a_width, a_height, a_cos, a_sin)
    second = (bx, by, b_width, b_height, b_cos, b_sin)
    frame = seen_from(first, second)
    area = intersection_area(frame)
    of_a, of_b = intersection_gradient(first, second, frame, area)
    meets = meets & (area > 0)
    if SOLID:
        depth = tl.maximum(tl.minimum(a_top, b_top) - tl.maximum(a_bottom, b_bottom), 0.0)
        inter = area * depth
    else:
        inter = area
    union = area_a + area_b - inter
    by_size = divide(-gradient * divide(inter, union), union)
    by_inter = divide(gradient, union) - by_size
    if SOLID:
        by_depth = tl.where(meets & (depth > 0), by_inter * area, 0.0)
        by_inter = by_inter * depth
        top = share_of_minimum(a_top, b_top, by_depth)
        bottom = share_of_minimum(-a_bottom, -b_bottom, by_depth)
        half = (top + bottom) / 2
        return (
            _times(meets, by_inter, of_a[0]),
            _times(meets, by_inter, of_a[1]),
            top - bottom,
            _times(meets, by_inter, of_a[2]) + _times(meets, by_size, divide(area_a, a_width)),
            _times(meets, by_inter, of_a[3]) + _times(meets, by_size, divide(area_a, a_height)),
            half + _times(meets, by_size, a_width * a_height),
            _times(meets, by_inter, of_a[4]),
        ), (
            _times(meets, by_inter, of_b[0]),
            _times(meets, by_inter, of_b[1]),
            bottom - top,
            _times(meets, by_inter, of_b[2]) + _times(meets, by_size, divide(area_b, b_width)),
            _times(meets, by_inter, of_b[3]) + _times(meets, by_size, divide(area_b, b_height)),
            by_depth - half + _times(meets, by_size, b_width * b_height),
            _times(meets, by_inter, of_b[4]),
        )
    else:
        return (
            _times(meets, by_inter, of_a[0]),
            _times(meets, by_inter, of_a[1]),
            _times(meets, by_inter, of_a[2]) + _times(meets, by_size, a_height),
            _times(meets, by_inter, of_a[3]) + _times(meets, by_size, a_width),
            _times(meets, by_inter, of_a[4]),
        ), (
            _times(meets, by_inter, of_b[0]),
            _times(meets, by_inter, of_b[1]),
            _times(meets, by_inter, of_b[2]) + _times(meets, by_size, b_height),
            _times(meets, by_inter, of_b[3]) + _times(meets, by_size, b_width),
            _times(meets, by_inter, of_b[4]),
        )
