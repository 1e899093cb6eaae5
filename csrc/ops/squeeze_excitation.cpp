#include "ops/squeeze_excitation.h"

#include <algorithm>
#include <memory>

#include "common/divide.h"
#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kPieceElements = 1 << 15;  // of a thread: waking it for fewer does not pay
constexpr int64_t kBlockElements = 1 << 14;  // of a partial sum
constexpr int64_t kMaxRows = 512;            // added up in float

// A contiguous parameter; a null pointer where there is none.
class Parameter {
 public:
  Parameter(
      const std::optional<Tensor>& x,
      const Tensor& input,
      const std::vector<int64_t>& shape,  // other dimensions are 1
      const char* name
  ) {
    if (!x) {
      return;
    }
    const int64_t dims = shape.size();
    bool fits = x->dim() >= dims && x->scalar_type() == input.scalar_type() && x->is_cpu();
    for (int64_t dim = 0; fits && dim < x->dim(); ++dim) {
      fits = x->size(dim) == (dim < dims ? shape[dim] : 1);
    }
    STD_TORCH_CHECK(fits, name, " must fit the input in shape, dtype and device");
    kept_ = x->is_contiguous() ? *x : torch::stable::contiguous(*x);
  }

  const void* data() const { return kept_ ? kept_->const_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> kept_;
};

Tensor squeeze_excitation(
    const Tensor& x,
    const Tensor& w1,
    const std::optional<Tensor>& b1,
    const Tensor& w2,
    const std::optional<Tensor>& b2,
    int64_t activation,
    bool hard
) {
  check_dim(x, 4, "input");
  STD_TORCH_CHECK(w1.dim() >= 2 && w1.size(0) > 0, "weight1 must have shape [S, C]");
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  const bool channels_last = is_channels_last(x);
  const Tensor input = in_format(x, channels_last);
  SqueezeExcitationArgs args{};
  args.N = x.size(0);
  args.C = x.size(1);
  args.S = w1.size(0);
  args.pixels = x.size(2) * x.size(3);
  const Parameter weight1(w1, x, {args.S, args.C}, "weight1"), bias1(b1, x, {args.S}, "bias1");
  const Parameter weight2(w2, x, {args.C, args.S}, "weight2"), bias2(b2, x, {args.C}, "bias2");
  Tensor output =
      empty_in_format(x, args.N, args.C, x.size(2), x.size(3), channels_last && x.numel() > 0);
  if (output.numel() == 0) {
    return output;
  }
  args.planes = !channels_last && args.pixels > 1;
  args.block = args.planes ? 1 : std::clamp<int64_t>(kBlockElements / args.C, 1, kMaxRows);
  args.blocks = args.planes ? 0 : ceil_div(args.pixels, args.block);
  args.activation = static_cast<Activation>(activation);
  args.hard = hard;
  args.input = input.const_data_ptr();
  args.weight1 = weight1.data();
  args.bias1 = bias1.data();
  args.weight2 = weight2.data();
  args.bias2 = bias2.data();
  args.output = output.mutable_data_ptr();
  FASTVISION_DISPATCH_FLOATING(x.scalar_type(), "input", [&] {
    using A = accumulate_t<scalar_t>;
    const int64_t N = args.N, C = args.C, S = args.S;
    const std::unique_ptr<A[]> memory(new A[N * args.blocks * C + 2 * N * C + N * S]);
    A* at = memory.get();
    args.sums = at;
    args.means = at += N * args.blocks * C;
    args.hidden = at += N * C;
    args.gates = at += N * S;
    using Step = SqueezeExcitationStep;
    // items of `elements` each, in multiples, on as many threads as are worth it
    const auto run = [&](Step step, int64_t items, int64_t elements, int64_t multiple = 1) {
      const int64_t wanted = ceil_div(kPieceElements, elements);
      parallel_chunks(items, ceil_div(wanted, multiple) * multiple, [&] {
        return [&args, step](int64_t begin, int64_t end) {
          const scalar_t* storage = nullptr;
          FASTVISION_CALL(squeeze_excitation, storage, args, step, begin, end);
        };
      });
    };
    if (args.planes) {
      run(Step::sums, N * C, args.pixels);
    } else {
      run(Step::sums, N * args.blocks, args.block * C);
      run(Step::means, N, args.blocks * C);
    }
    run(Step::squeeze, S, N * C, kLinearOutputs);
    run(Step::excite, C, N * S, kLinearOutputs);
    if (args.planes) {
      run(Step::scale, N * C, args.pixels);
    } else {
      run(Step::scale, N * args.pixels, C);
    }
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("squeeze_excitation", FASTVISION_BOX(&squeeze_excitation));
}

}  // namespace fastvision
