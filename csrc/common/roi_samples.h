// Bilinear samples one by one: of rois that are rotated, so that no matrices per axis exist, and
// where a bin takes its largest sample.
#pragma once

#include "common/roi_args.h"
#include "common/roi_geometry.h"

namespace fastvision {

constexpr int kMaxSamplesPerBin = 1 << 24;

template <typename A>
struct BilinearSample {
  int index;  // in its bin, by rows
  PixelBelow<A> y;
  PixelBelow<A> x;
};

struct Interval {
  int begin;
  int end;
};

// The i of [0, count) for which origin + i * step can be in [low, high], and a few more at most.
template <typename A>
FASTVISION_HOST_DEVICE inline Interval steps_between(A origin, A step, A low, A high, int count) {
  if (step == 0) {
    return origin >= low && origin <= high ? Interval{0, count} : Interval{0, 0};
  }
  const A slack = A(0.01) + 8 * epsilon<A>() * static_cast<A>(count);
  const A to_low = (low - origin) / step;
  const A to_high = (high - origin) / step;
  const A from = ceil((step > 0 ? to_low : to_high) - slack);
  const A to = floor((step > 0 ? to_high : to_low) + slack) + 1;
  // float may round the count up
  const int64_t begin = static_cast<int64_t>(at_most(at_least(from, A(0)), static_cast<A>(count)));
  const int64_t end = static_cast<int64_t>(at_most(at_least(to, A(0)), static_cast<A>(count)));
  return {
      static_cast<int>(begin < count ? begin : count), static_cast<int>(end < count ? end : count)
  };
}

struct PixelBox {
  int y_begin, y_end, x_begin, x_end;

  FASTVISION_HOST_DEVICE bool meets(int64_t y, int64_t height, int64_t x, int64_t width) const {
    return y_begin < y + height && y_end > y && x_begin < x + width && x_end > x;
  }
};

// A roi with its samples on two axes of its own, which are turned about the centre.
template <typename A>
struct SampledRoi {
  int level;
  int image;
  RoiFault fault;
  BilinearAxis<A> y;
  BilinearAxis<A> x;
  A cosine;
  A sine;
  A y_centre;
  A x_centre;
  A slack;  // how far rounding can move a sample, in pixels, with some to spare

  FASTVISION_HOST_DEVICE bool empty() const { return y.empty() || x.empty(); }
  FASTVISION_HOST_DEVICE int samples() const { return y.samples * x.samples; }

  // In pixels of the map, of a position on the own axes; in the order of operations of the
  // reference.
  FASTVISION_HOST_DEVICE A y_of(A v, A u) const {
    return rounded_add(
        rounded_add(rounded_multiply(v, cosine), -rounded_multiply(u, sine)), y_centre
    );
  }
  FASTVISION_HOST_DEVICE A x_of(A v, A u) const {
    return rounded_add(
        rounded_add(rounded_multiply(v, sine), rounded_multiply(u, cosine)), x_centre
    );
  }

  // Whether a sample is in the map; if so, its pixels.
  FASTVISION_HOST_DEVICE bool find(A v, A u, BilinearSample<A>& sample) const {
    const A y_at = y_of(v, u);
    const A x_at = x_of(v, u);
    if (!y.has(y_at) || !x.has(x_at)) {
      return false;
    }
    sample.y = pixel_below(y_at, y.extent);
    sample.x = pixel_below(x_at, x.extent);
    return true;
  }
  FASTVISION_HOST_DEVICE bool find(int ph, int pw, int index, BilinearSample<A>& sample) const {
    const int i = index / x.samples;
    const int j = index - i * x.samples;
    sample.index = index;
    return find(
        y.sample(y.bin_start(ph), static_cast<A>(i)),
        x.sample(x.bin_start(pw), static_cast<A>(j)),
        sample
    );
  }

  // Calls inside(sample) for a bin's samples in the map, by rows, and outside() once in the place
  // of the first that is not.
  template <typename Inside, typename Outside>
  FASTVISION_DEVICE void for_each_sample(int ph, int pw, Inside inside, Outside outside) const {
    const A v_begin = y.bin_start(ph);
    const A u_begin = x.bin_start(pw);
    bool left_out = false;
    const auto leave_out = [&] {
      if (!left_out) {
        left_out = true;
        outside();
      }
    };
    BilinearSample<A> sample;
    // of many samples only those that can be in the map
    const Interval rows = y.samples > 8 ? rows_near(v_begin, u_begin) : Interval{0, y.samples};
    for (int i = rows.begin; i < rows.end; ++i) {
      if (i == rows.begin && i > 0) {
        leave_out();
      }
      const A v = y.sample(v_begin, static_cast<A>(i));
      const Interval row = x.samples > 8 ? columns_near(v, u_begin) : Interval{0, x.samples};
      for (int j = row.begin; j < row.end; ++j) {
        if (j == row.begin && j > 0) {
          leave_out();
        }
        if (find(v, x.sample(u_begin, static_cast<A>(j)), sample)) {
          sample.index = i * x.samples + j;
          inside(sample);
        } else {
          leave_out();
        }
      }
      if (row.end < x.samples || row.begin >= row.end) {
        leave_out();
      }
    }
    if (rows.end < y.samples || rows.begin >= rows.end) {
      leave_out();
    }
  }

  // Pixels that bins can touch, and some around them.
  FASTVISION_HOST_DEVICE PixelBox pixels_of(int ph, int ph_end, int pw, int pw_end) const {
    const A height = y.bin_size * static_cast<A>(ph_end - ph) / 2;
    const A width = x.bin_size * static_cast<A>(pw_end - pw) / 2;
    const A v = y.start + y.bin_size * static_cast<A>(ph) + height;
    const A u = x.start + x.bin_size * static_cast<A>(pw) + width;
    const A y_reach = fabs(height * cosine) + fabs(width * sine) + slack;
    const A x_reach = fabs(height * sine) + fabs(width * cosine) + slack;
    return {
        clipped(y_of(v, u) - y_reach, y.extent),
        clipped(y_of(v, u) + y_reach + 1, y.extent),
        clipped(x_of(v, u) - x_reach, x.extent),
        clipped(x_of(v, u) + x_reach + 1, x.extent)
    };
  }

 private:
  FASTVISION_HOST_DEVICE static int clipped(A pixel, int extent) {
    const int64_t whole =
        static_cast<int64_t>(at_most(at_least(pixel, A(0)), static_cast<A>(extent)));
    return static_cast<int>(whole < extent ? whole : extent);
  }

  FASTVISION_HOST_DEVICE static Interval common(const Interval& a, const Interval& b) {
    return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
  }

  // The rows of a bin's samples with some near the map.
  FASTVISION_HOST_DEVICE Interval rows_near(A v_begin, A u_begin) const {
    const A step = y.bin_size / y.grid;
    const A half_row = x.bin_size / 2;
    const A v = v_begin + step / 2;
    const A u = u_begin + half_row;
    const A y_reach = 1 + slack + fabs(half_row * sine);
    const A x_reach = 1 + slack + fabs(half_row * cosine);
    return common(
        steps_between(y_of(v, u), step * cosine, -y_reach, y.extent + y_reach, y.samples),
        steps_between(x_of(v, u), step * sine, -x_reach, x.extent + x_reach, y.samples)
    );
  }

  // The part of a row.
  FASTVISION_HOST_DEVICE Interval columns_near(A v, A u_begin) const {
    const A step = x.bin_size / x.grid;
    const A u = u_begin + step / 2;
    const A low = -1 - slack;
    return common(
        steps_between(y_of(v, u), -step * sine, low, y.extent + slack, x.samples),
        steps_between(x_of(v, u), step * cosine, low, x.extent + slack, x.samples)
    );
  }
};

// Of a roi (batch, centre x and y, width, height, degrees), its axes turned.
template <typename A>
FASTVISION_HOST_DEVICE inline SampledRoi<A> read_rotated(const RoiArgs& args, int64_t k) {
  const A* roi = static_cast<const A*>(args.rois) + 6 * k;
  bool finite = true;
  for (int i = 0; i < 6; ++i) {
    finite = finite && isfinite(roi[i]);
  }
  const bool in_batch = has_image(args, roi[0]);
  const RoiLevel& map = args.levels[0];
  const A scale = static_cast<A>(map.spatial_scale);
  const A offset = args.aligned ? A(0.5) : A(0);
  SampledRoi<A> result;
  result.level = 0;
  result.image = finite && in_batch ? static_cast<int>(roi[0]) : 0;
  result.fault = in_batch ? RoiFault::none : RoiFault::batch_index;
  result.x_centre = rounded_add(rounded_multiply(roi[1], scale), -offset);
  result.y_centre = rounded_add(rounded_multiply(roi[2], scale), -offset);
  result.x = BilinearAxis<A>::centred(args, roi[3], map.spatial_scale, args.PW, map.W);
  result.y = BilinearAxis<A>::centred(args, roi[4], map.spatial_scale, args.PH, map.H);
  // in double, so that all devices round to the same, and multiples of 90 degrees to exact pixels
  const double degrees = fmod(static_cast<double>(roi[5]), 360.0);
#ifdef __CUDA_ARCH__
  const double cosine = cospi(degrees / 180);  // cos() would keep a table on the stack
  const double sine = sinpi(degrees / 180);
#else
  const double cosine = cos(degrees * (3.14159265358979323846 / 180));
  const double sine = sin(degrees * (3.14159265358979323846 / 180));
#endif
  result.cosine = static_cast<A>(cosine);
  result.sine = static_cast<A>(args.clockwise ? -sine : sine);
  if (!finite || !in_batch) {
    result.y.clear();
    result.x.clear();
  } else if (
      map.H > 0 && map.W > 0 && isfinite(result.x_centre) && isfinite(result.y_centre) &&
      (result.y.too_fine() || result.x.too_fine())
  ) {
    result.fault = RoiFault::samples;
  }
  return result;
}

template <typename A>
FASTVISION_HOST_DEVICE inline SampledRoi<A> read_upright(const RoiArgs& args, int64_t k) {
  const Roi<BilinearAxis<A>> roi = read_roi<BilinearAxis<A>>(args, k);
  return {roi.level, roi.image, roi.fault, roi.y, roi.x, A(1), A(0), A(0), A(0), A(0)};
}

// A roi without samples gives zeros; its level and image are in range in any case.
template <typename A>
FASTVISION_HOST_DEVICE inline SampledRoi<A> read_sampled_roi(const RoiArgs& args, int64_t k) {
  SampledRoi<A> roi = args.rotated ? read_rotated<A>(args, k) : read_upright<A>(args, k);
  const A reach = fabs(roi.y.start) + fabs(roi.y.bin_size) * static_cast<A>(args.PH) +
                  fabs(roi.x.start) + fabs(roi.x.bin_size) * static_cast<A>(args.PW) +
                  fabs(roi.y_centre) + fabs(roi.x_centre);
  roi.slack = 2 + 16 * epsilon<A>() * reach;
  const bool finite = isfinite(roi.y.start) && isfinite(roi.y.bin_size) && isfinite(roi.x.start) &&
                      isfinite(roi.x.bin_size) && isfinite(roi.y_centre) && isfinite(roi.x_centre);
  if (!roi.empty() && static_cast<int64_t>(roi.y.samples) * roi.x.samples > kMaxSamplesPerBin) {
    roi.fault = RoiFault::samples;
  }
  if (roi.empty() || roi.fault != RoiFault::none || !finite) {
    roi.y.clear();
    roi.x.clear();
  }
  return roi;
}

}  // namespace fastvision
