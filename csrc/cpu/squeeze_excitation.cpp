// Squeeze and excitation: means of channels, two small linear layers, and a scaled copy.
#include "ops/squeeze_excitation.h"

#include "common/simd_activation.h"
#include "common/simd_sum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kColumns = 4;       // vectors of channels that are summed at a time
constexpr int64_t kChunk = 2048;  // elements of a plane whose sum is taken in float

// [count <= lanes] values, zero where there is no pointer
template <typename A, typename T>
inline vector_t<A> load_some(const T* p, int64_t count) {
  if (p == nullptr) {
    return vector_t<A>{};
  }
  return count >= lanes_v<A> ? load(p) : load_partial(p, static_cast<int>(count));
}

template <typename T, typename V>
inline void store_some(T* p, V v, int64_t count) {
  if (count >= lanes_v<accumulate_t<T>>) {
    store(p, v);
  } else {
    store_partial(p, v, static_cast<int>(count));
  }
}

template <typename T, typename A>
inline A mean_of_plane(const T* x, int64_t pixels) {
  constexpr int64_t lanes = lanes_v<A>;
  double total = 0;
  for (int64_t first = 0; first < pixels; first += kChunk) {
    const int64_t end = first + kChunk < pixels ? first + kChunk : pixels;
    vector_t<A> even{}, odd{};
    int64_t i = first;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      even += load(x + i);
      odd += load(x + i + lanes);
    }
    for (; i < end; i += lanes) {
      even += load_some<A>(x + i, end - i);
    }
    total += sum_of_lanes<A>(even + odd);
  }
  return static_cast<A>(total / pixels);
}

// Sums of `kCount` vectors of channels over rows of C channels.
template <int kCount, typename T, typename A>
inline void sum_columns(const T* x, int64_t rows, int64_t C, A* to) {
  vector_t<A> sums[kCount] = {};
  for (int64_t row = 0; row < rows; ++row, x += C) {
    for (int i = 0; i < kCount; ++i) {
      sums[i] += load(x + i * lanes_v<A>);
    }
  }
  for (int i = 0; i < kCount; ++i) {
    store(to + i * lanes_v<A>, sums[i]);
  }
}

template <typename T, typename A>
inline void sum_rows(const T* x, int64_t rows, int64_t C, A* to) {
  constexpr int64_t lanes = lanes_v<A>;
  int64_t c = 0;
  for (; c + kColumns * lanes <= C; c += kColumns * lanes) {
    sum_columns<kColumns>(x + c, rows, C, to + c);
  }
  for (; c + lanes <= C; c += lanes) {
    sum_columns<1>(x + c, rows, C, to + c);
  }
  if (c < C && C >= lanes) {
    sum_columns<1>(x + C - lanes, rows, C, to + C - lanes);
  } else if (c < C) {
    vector_t<A> sum{};
    for (int64_t row = 0; row < rows; ++row) {
      sum += load_partial(x + row * C, static_cast<int>(C));
    }
    store_partial(to, sum, static_cast<int>(C));
  }
}

template <typename T, typename A>
void sums(const SqueezeExcitationArgs& args, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(args.input);
  if (args.planes) {
    for (int64_t plane = begin; plane < end; ++plane) {
      static_cast<A*>(args.means)[plane] =
          mean_of_plane<T, A>(x + plane * args.pixels, args.pixels);
    }
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / args.blocks, first = i % args.blocks * args.block;
    const int64_t left = args.pixels - first;
    sum_rows<T, A>(
        x + (image * args.pixels + first) * args.C,
        left < args.block ? left : args.block,
        args.C,
        static_cast<A*>(args.sums) + i * args.C
    );
  }
}

template <typename A>
void means(const SqueezeExcitationArgs& args, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    A* to = static_cast<A*>(args.means) + image * args.C;
    sum_rows<A, A>(
        static_cast<const A*>(args.sums) + image * args.blocks * args.C, args.blocks, args.C, to
    );
    for (int64_t c = 0; c < args.C; ++c) {
      to[c] /= args.pixels;
    }
  }
}

// A linear layer's outputs [begin, end), y = f(weight x + bias), for all images.
template <typename T, typename A, typename F>
inline void linear(
    const T* weight,  // [outputs, inputs]
    const T* bias,    // [outputs], or null
    const A* x,       // [images, inputs]
    A* y,             // [images, outputs]
    int64_t images,
    int64_t inputs,
    int64_t outputs,
    int64_t begin,
    int64_t end,
    const F& f
) {
  constexpr int lanes = lanes_v<A>;
  for (int64_t o = begin; o < end; o += lanes) {
    const int64_t count = end - o < lanes ? end - o : lanes;
    const T* rows[lanes];
    for (int i = 0; i < lanes; ++i) {
      rows[i] = weight + (o + (i < count ? i : 0)) * inputs;
    }
    const vector_t<A> b = load_some<A>(bias == nullptr ? nullptr : bias + o, count);
    for (int64_t image = 0; image < images; ++image) {
      const A* v = x + image * inputs;
      vector_t<A> products[lanes] = {};
      int64_t k = 0;
      for (; k + lanes <= inputs; k += lanes) {
        const vector_t<A> values = load(v + k);
        for (int i = 0; i < lanes; ++i) {
          products[i] = multiply_add(load(rows[i] + k), values, products[i]);
        }
      }
      if (k < inputs) {
        const int rest = static_cast<int>(inputs - k);
        const vector_t<A> values = load_partial(v + k, rest);
        for (int i = 0; i < lanes; ++i) {
          products[i] = multiply_add(load_partial(rows[i] + k, rest), values, products[i]);
        }
      }
      transpose(products);  // lanes are outputs now
      for (int step = 1; step < lanes; step *= 2) {
        for (int i = 0; i + step < lanes; i += 2 * step) {
          products[i] += products[i + step];
        }
      }
      store_some(y + image * outputs + o, f(products[0] + b), count);
    }
  }
}

template <typename T, typename A>
void squeeze(const SqueezeExcitationArgs& args, int64_t begin, int64_t end) {
  with_activation<A>(args.activation, A(0), [&](auto f) {
    linear<T, A>(
        static_cast<const T*>(args.weight1),
        static_cast<const T*>(args.bias1),
        static_cast<const A*>(args.means),
        static_cast<A*>(args.hidden),
        args.N,
        args.C,
        args.S,
        begin,
        end,
        f
    );
  });
}

template <typename T, typename A>
void excite(const SqueezeExcitationArgs& args, int64_t begin, int64_t end) {
  const auto gate = [&](auto f) {
    linear<T, A>(
        static_cast<const T*>(args.weight2),
        static_cast<const T*>(args.bias2),
        static_cast<const A*>(args.hidden),
        static_cast<A*>(args.gates),
        args.N,
        args.S,
        args.C,
        begin,
        end,
        f
    );
  };
  using V = vector_t<A>;
  if (args.hard) {
    const V six = broadcast(A(6));
    gate([=](V z) { return clamp(z + A(3), V{}, six) / six; });
  } else {
    gate([](V z) { return sigmoid<A>(z); });
  }
}

// y = x * gate(i) for a row or plane of `length` elements
template <typename T, typename Gate>
inline void scale_item(const T* x, T* y, int64_t length, const Gate& gate) {
  constexpr int64_t lanes = lanes_v<accumulate_t<T>>;
  int64_t i = 0;
  for (; i + lanes <= length; i += lanes) {
    store(y + i, load(x + i) * gate(i, lanes));
  }
  if (i < length) {
    const int rest = static_cast<int>(length - i);
    store_partial(y + i, load_partial(x + i, rest) * gate(i, rest), rest);
  }
}

template <typename T, typename A>
void scale(const SqueezeExcitationArgs& args, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(args.input);
  T* y = static_cast<T*>(args.output);
  const A* gates = static_cast<const A*>(args.gates);
  for (int64_t item = begin; item < end; ++item) {
    if (args.planes) {
      const vector_t<A> g = broadcast(gates[item]);
      const int64_t at = item * args.pixels;
      scale_item(x + at, y + at, args.pixels, [=](int64_t, int64_t) { return g; });
    } else {
      const A* g = gates + item / args.pixels * args.C;
      const int64_t at = item * args.C;
      scale_item(x + at, y + at, args.C, [=](int64_t c, int64_t count) {
        return load_some<A>(g + c, count);
      });
    }
  }
}

template <typename T, typename A>
void run(
    const SqueezeExcitationArgs& args, SqueezeExcitationStep step, int64_t begin, int64_t end
) {
  switch (step) {
    case SqueezeExcitationStep::sums:
      return sums<T, A>(args, begin, end);
    case SqueezeExcitationStep::means:
      return means<A>(args, begin, end);
    case SqueezeExcitationStep::squeeze:
      return squeeze<T, A>(args, begin, end);
    case SqueezeExcitationStep::excite:
      return excite<T, A>(args, begin, end);
    case SqueezeExcitationStep::scale:
      return scale<T, A>(args, begin, end);
  }
}

}  // namespace

#define FASTVISION_DEFINE_SQUEEZE_EXCITATION(T, A) \
  void squeeze_excitation(                         \
      const T*,                                    \
      const SqueezeExcitationArgs& args,           \
      SqueezeExcitationStep step,                  \
      int64_t begin,                               \
      int64_t end                                  \
  ) {                                              \
    run<T, A>(args, step, begin, end);             \
  }
FASTVISION_DEFINE_SQUEEZE_EXCITATION(float, float)
FASTVISION_DEFINE_SQUEEZE_EXCITATION(double, double)
FASTVISION_DEFINE_SQUEEZE_EXCITATION(half_t, float)
FASTVISION_DEFINE_SQUEEZE_EXCITATION(bfloat16_t, float)
#undef FASTVISION_DEFINE_SQUEEZE_EXCITATION

}  // namespace fastvision::FASTVISION_ISA
