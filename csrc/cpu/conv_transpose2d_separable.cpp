// Separable transposed convolution on the CPU: each row of the input is stretched once, and each
// row of the output is a weighted sum of a few stretched rows.
#include "ops/conv_transpose2d_separable.h"

#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A>
struct Separable {
  const SeparableArgs<A>& args;
  const SeparableTask& task;
  int64_t width;    // elements per pixel
  int64_t columns;  // u of the task
  A* input_row;
  A* shift_row;
  A* sum_row;
  A* rows;  // [y.most()][separable_row]
  int64_t row_size;

  Separable(const SeparableArgs<A>& args, const SeparableTask& task, A* scratch)
      : args(args),
        task(task),
        width(args.channels_last ? args.C : 1),
        columns((task.q_end - task.q_begin) * args.x.stride),
        input_row(scratch),
        shift_row(scratch + separable_input_row(args, task.q_end - task.q_begin)),
        sum_row(shift_row + separable_row(args, task.q_end - task.q_begin)),
        rows(sum_row + separable_row(args, task.q_end - task.q_begin)),
        row_size(separable_row(args, task.q_end - task.q_begin)) {}

  int64_t channel() const { return args.channels_last ? 0 : task.plane % args.C; }

  void fill_shift() {
    for (int64_t i = 0; i < width; ++i) {
      shift_row[i] = args.shift ? args.shift[channel() + i] : A(0);
    }
    for (int64_t i = width; i < columns * width; ++i) {
      shift_row[i] = shift_row[i - width];
    }
  }

  // Pixels [q_begin - count + 1, q_end) of row y in the compute type, times the channel's scale;
  // zeros outside the map.
  void load_row(int64_t y) {
    const T* source =
        static_cast<const T*>(args.input) + (task.plane * args.H + y) * args.W * width;
    const int64_t first = task.q_begin - args.x.most() + 1;
    const int64_t begin = first < 0 ? 0 : first;
    const int64_t end = task.q_end < args.W ? task.q_end : args.W;
    const int64_t size = (task.q_end - first) * width;
    for (int64_t i = 0; i < size + kSeparableSlack; ++i) {
      input_row[i] = A(0);
    }
    constexpr int lanes = lanes_v<A>;
    const A* scale = args.scale + channel();
    source += begin * width;
    A* out = input_row + (begin - first) * width;
    if (args.channels_last) {
      for (int64_t x = begin; x < end; ++x, source += width, out += width) {
        int64_t c = 0;
        for (; c + lanes <= width; c += lanes) {
          store(out + c, load(source + c) * load(scale + c));
        }
        if (c < width) {
          const int rest = static_cast<int>(width - c);
          store_partial(
              out + c, load_partial(source + c, rest) * load_partial(scale + c, rest), rest
          );
        }
      }
    } else {
      int64_t x = begin;
      for (; x + lanes <= end; x += lanes, source += lanes, out += lanes) {
        store(out, load(source) * broadcast(*scale));
      }
      if (x < end) {
        const int rest = static_cast<int>(end - x);
        store_partial(out, load_partial(source, rest) * broadcast(*scale), rest);
      }
    }
  }

  // channels_last: lanes are channels; the next pixel overwrites what a vector writes past its end
  void stretch_pixels(A* out) {
    constexpr int lanes = lanes_v<A>;
    const int64_t stride = args.x.stride;
    for (int64_t q = 0; q < task.q_end - task.q_begin; ++q) {
      const A* newest = input_row + (q + args.x.most() - 1) * width;
      for (int64_t r = 0; r < stride; ++r, out += width) {
        const int64_t count = args.x.count(r);
        for (int64_t c = 0; c < width; c += lanes) {
          vector_t<A> sum = {};
          for (int64_t t = 0; t < count; ++t) {
            const vector_t<A> tap = broadcast(args.x.taps[r + t * stride]);
            sum = multiply_add(load(newest - t * width + c), tap, sum);
          }
          store(out + c, sum);
        }
      }
    }
  }

  // NCHW, large strides: lanes are the outputs of one input pixel
  void stretch_wide(A* out) {
    const int64_t stride = args.x.stride;
    // phases with one more tap come first
    const int64_t full = args.x.size - (args.x.most() - 1) * stride;
    for (int64_t q = 0; q < task.q_end - task.q_begin; ++q, out += stride) {
      const A* newest = input_row + q + args.x.most() - 1;
      stretch_phases(out, newest, 0, full, args.x.most());
      stretch_phases(out, newest, full, stride, args.x.most() - 1);
    }
  }

  inline void stretch_phases(A* out, const A* newest, int64_t r, int64_t end, int64_t count) const {
    constexpr int lanes = lanes_v<A>;
    const int64_t stride = args.x.stride;
    for (; r + lanes <= end; r += lanes) {
      vector_t<A> sum = {};
      for (int64_t t = 0; t < count; ++t) {
        sum = multiply_add(load(args.x.taps + r + t * stride), broadcast(newest[-t]), sum);
      }
      store(out + r, sum);
    }
    for (; r < end; ++r) {
      A sum = 0;
      for (int64_t t = 0; t < count; ++t) {
        sum += args.x.taps[r + t * stride] * newest[-t];
      }
      out[r] = sum;
    }
  }

  // NCHW, small strides: lanes are input pixels, and scalar stores interleave the phases
  void stretch_narrow(A* out) {
    constexpr int lanes = lanes_v<A>;
    const int64_t stride = args.x.stride;
    const int64_t columns = task.q_end - task.q_begin;
    for (int64_t q = 0; q < columns; q += lanes) {
      const A* newest = input_row + q + args.x.most() - 1;
      const int64_t valid = columns - q < lanes ? columns - q : lanes;
      for (int64_t r = 0; r < stride; ++r) {
        vector_t<A> sum = {};
        for (int64_t t = 0; t < args.x.count(r); ++t) {
          sum = multiply_add(load(newest - t), broadcast(args.x.taps[r + t * stride]), sum);
        }
        A* target = out + q * stride + r;
        if (valid == lanes) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) {
            target[i * stride] = sum[i];
          }
        } else {
          for (int64_t i = 0; i < valid; ++i) {
            target[i * stride] = sum[i];
          }
        }
      }
    }
  }

  void stretch(int64_t y) {
    load_row(y);
    A* out = rows + y % args.y.most() * row_size;
    if (args.channels_last) {
      stretch_pixels(out);
    } else if (args.x.stride >= lanes_v<A>) {
      stretch_wide(out);
    } else {
      stretch_narrow(out);
    }
  }

  // Output row oy from the existing stretched rows u / stride - t, at most two at a time.
  void combine(int64_t oy) const {
    const int64_t u = oy + args.y.padding;
    const int64_t q = u / args.y.stride;
    const int64_t r = u % args.y.stride;
    int64_t newest = q < args.H ? q : args.H - 1;
    int64_t oldest = q - args.y.count(r) + 1;
    oldest = oldest < 0 ? 0 : oldest;
    const auto row = [&](int64_t y) { return rows + y % args.y.most() * row_size; };
    const auto tap = [&](int64_t y) { return args.y.taps[r + (q - y) * args.y.stride]; };
    const A* sum = shift_row;
    for (; newest - oldest >= 2; --newest) {  // never for bilinear filters
      for (int64_t i = 0; i + lanes_v<A> <= row_size; i += lanes_v<A>) {
        const vector_t<A> more = load(row(newest) + i) * broadcast(tap(newest));
        store(sum_row + i, load(sum + i) + more);
      }
      sum = sum_row;
    }
    if (newest < oldest) {
      finish<0>(oy, sum, sum, A(0), sum, A(0));
    } else if (newest == oldest) {
      finish<1>(oy, sum, row(newest), tap(newest), sum, A(0));
    } else {
      finish<2>(oy, sum, row(newest), tap(newest), row(oldest), tap(oldest));
    }
  }

  template <int kRows>
  void finish(int64_t oy, const A* sums, const A* row0, A tap0, const A* row1, A tap1) const {
    constexpr int lanes = lanes_v<A>;
    // the task's columns of the output
    const int64_t first = task.q_begin * args.x.stride - args.x.padding;
    const int64_t begin = first < 0 ? 0 : first;
    const int64_t last = task.q_end * args.x.stride - args.x.padding;
    const int64_t end = last < args.OW ? last : args.OW;
    const int64_t skip = (begin - first) * width;
    const int64_t place = ((task.plane * args.OH + oy) * args.OW + begin) * width;
    T* out = static_cast<T*>(args.output) + place;
    const T* residual = args.residual ? static_cast<const T*>(args.residual) + place : nullptr;
    const int64_t size = (end - begin) * width;
    with_activation<A>(args.activation, args.negative_slope, [&](auto f) {
      for (int64_t i = 0; i < size; i += lanes) {
        vector_t<A> sum = load(sums + skip + i);
        if constexpr (kRows > 0) {
          sum = multiply_add(load(row0 + skip + i), broadcast(tap0), sum);
        }
        if constexpr (kRows > 1) {
          sum = multiply_add(load(row1 + skip + i), broadcast(tap1), sum);
        }
        const int count = size - i < lanes ? static_cast<int>(size - i) : lanes;
        if (residual) {
          sum += count == lanes ? load(residual + i) : load_partial(residual + i, count);
        }
        if (count == lanes) {
          store(out + i, f(sum));
        } else {
          store_partial(out + i, f(sum), count);
        }
      }
    });
  }

  void run() {
    fill_shift();
    int64_t next = 0;  // row to stretch
    for (int64_t oy = task.y_begin; oy < task.y_end; ++oy) {
      const int64_t q = (oy + args.y.padding) / args.y.stride;
      const int64_t oldest = q - args.y.most() + 1;
      next = next < oldest ? oldest : next;
      for (; next <= q && next < args.H; ++next) {
        stretch(next);
      }
      combine(oy);
    }
  }
};

}  // namespace

#define FASTVISION_DEFINE_SEPARABLE(T, A)                                           \
  void conv_transpose2d_separable(                                                  \
      const T*, const SeparableArgs<A>& args, const SeparableTask& task, A* scratch \
  ) {                                                                               \
    Separable<T, A>(args, task, scratch).run();                                     \
  }
FASTVISION_DEFINE_SEPARABLE(float, float)
FASTVISION_DEFINE_SEPARABLE(double, double)
FASTVISION_DEFINE_SEPARABLE(half_t, float)
FASTVISION_DEFINE_SEPARABLE(bfloat16_t, float)
#undef FASTVISION_DEFINE_SEPARABLE

}  // namespace fastvision::FASTVISION_ISA
