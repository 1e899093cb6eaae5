"""Trigonometry."""

from __future__ import annotations

import triton
import triton.language as tl

from .scalars import divide


@triton.jit
def arctangent(x):
    """atan(x), within 2 roundings; pi / 2 for infinity."""
    size = tl.abs(x)
    inverted = size > 1.0
    t = tl.where(
        inverted, divide(tl.full(x.shape, 1.0, x.dtype), tl.where(inverted, size, 1.0)), size
    )
    # atan(t) = pi / 4 + atan((t - 1) / (t + 1))
    large = t > 0.41421356237309503
    t = tl.where(large, divide(t - 1.0, t + 1.0), t)
    z = t * t
    if x.dtype == tl.float64:
        series = z * -0.017803896394812564 + 0.03796390316111083
        series = series * z - 0.05035049795312439
        series = series * z + 0.05846866752275139
        series = series * z - 0.06662950246036792
        series = series * z + 0.07692045194561481
        series = series * z - 0.09090896801472813
        series = series * z + 0.11111110744657099
        series = series * z - 0.14285714279244968
        series = series * z + 0.19999999999940837
        series = series * z - 0.3333333333333312
    else:
        series = z * -0.06026070970 + 0.10569738024
        series = series * z - 0.14239520496
        series = series * z + 0.19998182384
        series = series * z - 0.33333306880
    angle = t + t * z * series
    angle = tl.where(large, angle + 0.7853981633974483, angle)
    angle = tl.where(inverted, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, -angle, angle)


@triton.jit
def cosine_and_sine(degrees):
    """Of angles in degrees; quarter turns are taken off first, which is exact below 10^5 turns."""
    turns = tl.floor(degrees / 90.0 + 0.5)
    x = (degrees - turns * 90.0) * 0.017453292519943295
    quarter = turns - 4.0 * tl.floor(turns / 4.0)
    z = x * x
    # Taylor series on [-pi / 4, pi / 4]
    if degrees.dtype == tl.float64:
        odd = z * -8.2206352466243295e-18 + 2.8114572543455206e-15
        odd = odd * z - 7.6471637318198164e-13
        odd = odd * z + 1.6059043836821613e-10
        odd = odd * z - 2.5052108385441720e-08
        odd = odd * z + 2.7557319223985893e-06
        odd = odd * z - 1.9841269841269841e-04
        even = z * -1.5619206968586225e-16 + 4.7794773323873853e-14
        even = even * z - 1.1470745597729725e-11
        even = even * z + 2.0876756987868099e-09
        even = even * z - 2.7557319223985888e-07
        even = even * z + 2.4801587301587302e-05
    else:
        odd = z * -2.5052108385441720e-08 + 2.7557319223985893e-06
        odd = odd * z - 1.9841269841269841e-04
        even = z * -2.7557319223985888e-07 + 2.4801587301587302e-05
    odd = odd * z + 8.3333333333333333e-03
    odd = odd * z - 1.6666666666666667e-01
    even = even * z - 1.3888888888888889e-03
    even = even * z + 4.1666666666666667e-02
    even = even * z - 0.5
    sin = x + x * z * odd
    cos = 1.0 + z * even
    swapped = (quarter == 1) | (quarter == 3)
    first = tl.where(swapped, sin, cos)
    second = tl.where(swapped, cos, sin)
    first = tl.where((quarter == 1) | (quarter == 2), -first, first)
    return first, tl.where(quarter >= 2, -second, second)
