// Rotated boxes: their corners, the area common to two of them, and its derivatives. For numbers
// and for vectors of simd.h alike: V is either.
//
// A box has a center, a width and a height, and an angle whose cosine and sine are given. It turns
// counterclockwise as seen, with y pointing down: the width is along (cos, -sin), the height along
// (sin, cos). Sides count by their magnitude.
#pragma once

#if defined(__CUDACC__) || defined(FASTVISION_CUDA_EMULATION)
#define FASTVISION_ROTATED_INLINE __device__ __forceinline__
#else
#define FASTVISION_ROTATED_INLINE inline __attribute__((always_inline))
#endif

namespace fastvision {

template <typename V>
struct RotatedBox {
  V cx, cy, width, height, cos, sin;
};

// A box seen from another: in the frame of the other, whose center is 0 and whose width is along x.
template <typename V>
struct BoxInFrame {
  V cx, cy;                   // center
  V wx, wy, hx, hy;           // half of its sides, as vectors
  V cos, sin;                 // of the angle between the two
  V across, along;            // and their lengths
  V half_width, half_height;  // of the other

  // in the order upper left, upper right, lower right, lower left of the unturned box
  FASTVISION_ROTATED_INLINE void corners(V (&x)[4], V (&y)[4]) const {
    x[0] = cx - wx - hx;
    y[0] = cy - wy - hy;
    x[1] = cx + wx - hx;
    y[1] = cy + wy - hy;
    x[2] = cx + wx + hx;
    y[2] = cy + wy + hy;
    x[3] = cx - wx + hx;
    y[3] = cy - wy + hy;
  }
};

namespace rotated {

template <typename V>
FASTVISION_ROTATED_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
FASTVISION_ROTATED_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
FASTVISION_ROTATED_INLINE V magnitude(V a) {
  return a < V{} ? -a : a;
}
// low if x is NaN
template <typename V>
FASTVISION_ROTATED_INLINE V clamp(V x, V low, V high) {
  return smaller(larger(x, low), high);
}

// Integral of y dx from (x0, y0) to (x1, y1), where x counts only from -width to width and y is
// clamped to the heights from -height to height.
template <typename V>
FASTVISION_ROTATED_INLINE V edge_integral(V x0, V y0, V x1, V y1, V slope, V width, V height) {
  const V start = clamp(x0, -width, width), end = clamp(x1, -width, width);
  const V lowest = smaller(y0, y1), highest = larger(y0, y1);
  const V ya = clamp(y0 + (start - x0) * slope, lowest, highest);
  const V yb = clamp(y1 + (end - x1) * slope, lowest, highest);
  const V low = smaller(ya, yb), high = larger(ya, yb);
  const V low_inside = clamp(low, -height, height), high_inside = clamp(high, -height, height);
  const V middle = (low_inside + high_inside) / 2, range = high - low;
  // lengths of y that are clamped, each without a rounding error
  const V below = smaller(high, -height) - smaller(low, -height);
  const V above = larger(high, height) - larger(low, height);
  const V weighted = height * (above - below) + middle * (high_inside - low_inside);
  const V mean = range > V{} ? weighted / range : middle;
  return (end - start) * mean;
}

}  // namespace rotated

template <typename V>
FASTVISION_ROTATED_INLINE BoxInFrame<V> seen_from(const RotatedBox<V>& a, const RotatedBox<V>& b) {
  const V dx = b.cx - a.cx, dy = b.cy - a.cy;
  BoxInFrame<V> f;
  f.cx = dx * a.cos - dy * a.sin;
  f.cy = dx * a.sin + dy * a.cos;
  f.cos = a.cos * b.cos + a.sin * b.sin;
  f.sin = b.sin * a.cos - b.cos * a.sin;
  f.across = rotated::magnitude(b.width) / 2;
  f.along = rotated::magnitude(b.height) / 2;
  f.wx = f.across * f.cos;
  f.wy = -f.across * f.sin;
  f.hx = f.along * f.sin;
  f.hy = f.along * f.cos;
  f.half_width = rotated::magnitude(a.width) / 2;
  f.half_height = rotated::magnitude(a.height) / 2;
  return f;
}

// Whether the boxes share more than a border: no side of one has all of the other beyond it.
template <typename V>
FASTVISION_ROTATED_INLINE auto boxes_cross(const BoxInFrame<V>& f) {
  using rotated::magnitude;
  const V cos = magnitude(f.cos), sin = magnitude(f.sin);
  // between the centers, along the sides of the second box
  const V u = f.cx * f.cos - f.cy * f.sin, v = f.cx * f.sin + f.cy * f.cos;
  return (magnitude(f.cx) < f.half_width + magnitude(f.wx) + magnitude(f.hx)) &
         (magnitude(f.cy) < f.half_height + magnitude(f.wy) + magnitude(f.hy)) &
         (magnitude(u) < f.across + f.half_width * cos + f.half_height * sin) &
         (magnitude(v) < f.along + f.half_width * sin + f.half_height * cos);
}

// Area common to both boxes, by Green's theorem: the sum of integrals along the edges of one, of y
// clamped to the other. It is continuous in the corners, so rounding cannot make it jump. 0 where
// it is not finite, and without a rounding error where the boxes are apart.
template <typename V>
FASTVISION_ROTATED_INLINE V intersection_area(const BoxInFrame<V>& f) {
  using rotated::edge_integral;
  V x[4], y[4];
  f.corners(x, y);
  const V zero{};
  // opposite edges are parallel
  const V along = f.wx == zero ? zero : f.wy / f.wx, across = f.hx == zero ? zero : f.hy / f.hx;
  const V w = f.half_width, h = f.half_height;
  const V total = edge_integral(x[0], y[0], x[1], y[1], along, w, h) +
                  edge_integral(x[1], y[1], x[2], y[2], across, w, h) +
                  edge_integral(x[2], y[2], x[3], y[3], along, w, h) +
                  edge_integral(x[3], y[3], x[0], y[0], across, w, h);
  // y points down, so the way from corner to corner has the area on its right
  const V area = rotated::larger(-total, zero);
  return (area - area == zero) & boxes_cross(f) ? area : zero;
}

template <typename V>
FASTVISION_ROTATED_INLINE V intersection_area(const RotatedBox<V>& a, const RotatedBox<V>& b) {
  return intersection_area(seen_from(a, b));
}

// Half of the width and height of the upright box around a rotated one.
template <typename V>
FASTVISION_ROTATED_INLINE void upright_extent(const RotatedBox<V>& b, V& x, V& y) {
  using rotated::magnitude;
  x = magnitude(b.width * b.cos) / 2 + magnitude(b.height * b.sin) / 2;
  y = magnitude(b.width * b.sin) / 2 + magnitude(b.height * b.cos) / 2;
}

// Derivatives of the common area by the center, width, height and angle (in radians) of each box.
template <typename V>
struct AreaGradient {
  V cx, cy, width, height, angle;
};

namespace rotated {

// Narrows the part [t0, t1] of an edge from `start` along `step` to where it is between +-limit.
template <typename V>
FASTVISION_ROTATED_INLINE void narrow_to(V start, V step, V limit, V& t0, V& t1) {
  const V zero{};
  const V ta = (-limit - start) / step, tb = (limit - start) / step;
  const V none = t0;  // an edge along the border is inside or outside as a whole
  const auto level = step == zero;
  const auto inside = magnitude(start) <= limit;
  const V first = level ? none : smaller(ta, tb),
          last = level ? (inside ? t1 : none) : larger(ta, tb);
  t0 = larger(first, t0);
  t1 = smaller(last, t1);
}

// Adds what an edge of the second box inside of the first contributes: moved by its outward normal,
// it adds its length to the area.
template <typename V>
struct EdgeSums {
  V force_x{}, force_y{};    // sum of length * normal
  V moment_x{}, moment_y{};  // sum of length * normal.x * x, and the same for y
  V turn_frame{};            // torque about 0
  V turn_center{};           // about the second box's center
  V sides{}, ends{};         // lengths across the width, across the height

  FASTVISION_ROTATED_INLINE void add(
      const BoxInFrame<V>& f,
      V x,
      V y,
      V step_x,
      V step_y,
      V size,
      V normal_x,
      V normal_y,
      V& lengths
  ) {
    V t0{}, t1 = V{} + 1;
    narrow_to(x, step_x, f.half_width, t0, t1);
    narrow_to(y, step_y, f.half_height, t0, t1);
    const auto some = t1 > t0;
    const V length = some ? (t1 - t0) * size : V{};
    const V middle = some ? (t0 + t1) / 2 : V{};
    const V mx = x + middle * step_x, my = y + middle * step_y;
    const V fx = length * normal_x, fy = length * normal_y;
    force_x += fx;
    force_y += fy;
    moment_x += fx * mx;
    moment_y += fy * my;
    // a turn moves (x, y) along (y, -x)
    turn_frame += fx * my - fy * mx;
    turn_center += fx * (my - f.cy) - fy * (mx - f.cx);
    lengths += length;
  }
};

}  // namespace rotated

// `area`: intersection_area. Only edges of b are followed: the area does not change if both boxes
// move or turn together, and the divergence theorem gives the sides of a.
template <typename V>
FASTVISION_ROTATED_INLINE void intersection_gradient(
    const RotatedBox<V>& a,
    const RotatedBox<V>& b,
    const BoxInFrame<V>& f,
    V area,
    AreaGradient<V>& of_a,
    AreaGradient<V>& of_b
) {
  V x[4], y[4];
  f.corners(x, y);
  rotated::EdgeSums<V> sums;
  const V two = V{} + 2;
  const V width = rotated::magnitude(b.width), height = rotated::magnitude(b.height);
  // upper, right, lower, left
  sums.add(f, x[0], y[0], two * f.wx, two * f.wy, width, -f.sin, -f.cos, sums.ends);
  sums.add(f, x[1], y[1], two * f.hx, two * f.hy, height, f.cos, -f.sin, sums.sides);
  sums.add(f, x[2], y[2], -two * f.wx, -two * f.wy, width, f.sin, f.cos, sums.ends);
  sums.add(f, x[3], y[3], -two * f.hx, -two * f.hy, height, -f.cos, f.sin, sums.sides);
  // back from the frame of a
  of_b.cx = sums.force_x * a.cos + sums.force_y * a.sin;
  of_b.cy = sums.force_y * a.cos - sums.force_x * a.sin;
  of_b.width = b.width < V{} ? -sums.sides / 2 : sums.sides / 2;
  of_b.height = b.height < V{} ? -sums.ends / 2 : sums.ends / 2;
  of_b.angle = sums.turn_center;
  of_a.cx = -of_b.cx;
  of_a.cy = -of_b.cy;
  of_a.width = (area - sums.moment_x) / a.width;
  of_a.height = (area - sums.moment_y) / a.height;
  of_a.angle = -sums.turn_frame;
}

}  // namespace fastvision
