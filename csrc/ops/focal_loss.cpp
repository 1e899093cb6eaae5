#include "ops/focal_loss.h"

#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"
#ifdef USE_CUDA
#include "common/cuda_stream.h"
#endif

namespace fastvision {
namespace {

// Logits per task. Sums are taken per task, so this affects their rounding and must not depend on
// the number of threads.
constexpr int64_t kPiece = 1 << 14;

ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Tensor empty_like(const Tensor& like, const Tensor& shape) {
  std::vector<int64_t> sizes(shape.dim()), strides(shape.dim());
  int64_t stride = 1;
  for (int64_t dim = shape.dim() - 1; dim >= 0; --dim) {
    sizes[dim] = shape.size(dim);
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  return empty_result(like, sizes, strides);
}

// Inputs and results of a call; owns the tensors that `args` points into.
struct Call {
  FocalArgs args{};
  std::vector<Tensor> inputs, targets, results;  // results: the loss, then gradients

  Call(std::vector<Tensor> x, std::vector<Tensor> t, double gamma, bool reduce, double grad_scale)
      : inputs(std::move(x)), targets(std::move(t)) {
    STD_TORCH_CHECK(
        inputs.size() >= 1 && inputs.size() <= kMaxFocalLevels,
        "expected 1 to ",
        kMaxFocalLevels,
        " levels, got ",
        inputs.size()
    );
    STD_TORCH_CHECK(targets.size() == inputs.size(), "targets must be one Tensor per level");
    STD_TORCH_CHECK(reduce || inputs.size() == 1, "several levels must be reduced");
    STD_TORCH_CHECK(gamma >= 0, "gamma must not be negative, got ", gamma);
    const Tensor& first = inputs[0];
    args.num_levels = static_cast<int>(inputs.size());
    args.labels = targets[0].scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(!args.labels || first.dim() >= 1, "labels need inputs of a dimension or more");
    args.K = args.labels ? first.size(first.dim() - 1) : 1;
    args.gamma = gamma;
    args.grad_scale = grad_scale;
    for (size_t i = 0; i < inputs.size(); ++i) {
      check_level(inputs[i], targets[i]);
      inputs[i] = dense(inputs[i]);
      targets[i] = dense(targets[i]);
    }
    results.push_back(
        reduce ? torch::stable::new_empty(first, {}, accumulation_type(first.scalar_type()))
               : Tensor()
    );
    for (size_t i = 0; i < inputs.size(); ++i) {
      args.levels[i].inputs = inputs[i].const_data_ptr();
      args.levels[i].targets = targets[i].const_data_ptr();
      args.levels[i].rows = args.labels ? targets[i].numel() : inputs[i].numel();
      if (grad_scale != 0) {
        results.push_back(empty_like(first, inputs[i]));
        args.levels[i].grads = results.back().mutable_data_ptr();
      }
    }
  }

  void write_losses(const Tensor& shape) {
    results[0] = empty_like(inputs[0], shape);
    args.levels[0].losses = results[0].mutable_data_ptr();
  }

  int64_t elements() const {
    int64_t n = 0;
    for (const Tensor& x : inputs) {
      n += x.numel();
    }
    return n;
  }

 private:
  void check_level(const Tensor& x, const Tensor& t) const {
    STD_TORCH_CHECK(
        x.scalar_type() == inputs[0].scalar_type() && x.device() == inputs[0].device() &&
            t.device() == inputs[0].device(),
        "levels and targets must be on one device, and levels of one dtype"
    );
    STD_TORCH_CHECK(
        t.scalar_type() == (args.labels ? ScalarType::Long : x.scalar_type()),
        "targets must be int64 labels or of the dtype of inputs"
    );
    bool fits = t.dim() + args.labels == x.dim();
    for (int64_t dim = 0; fits && dim < t.dim(); ++dim) {
      fits = t.size(dim) == x.size(dim);
    }
    STD_TORCH_CHECK(
        fits, "targets must have the shape of inputs, labels all but its last dimension"
    );
    STD_TORCH_CHECK(!args.labels || x.size(x.dim() - 1) == args.K, "levels differ in classes");
  }
};

struct Piece {
  FocalTask task;
  FocalResult result;
};

std::vector<Piece> cut(const FocalArgs& args) {
  std::vector<Piece> pieces;
  const int64_t step = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, args.K));
  for (int level = 0; level < args.num_levels; ++level) {
    for (int64_t row = 0; row < args.levels[level].rows; row += step) {
      const int64_t end = std::min(args.levels[level].rows, row + step);
      pieces.push_back({{level, row, end}, {0, -1}});
    }
  }
  return pieces;
}

double sum_of(const std::vector<Piece>& pieces, int64_t K) {
  double sum = 0;
  for (const Piece& piece : pieces) {
    STD_TORCH_CHECK(
        piece.result.bad_row < 0,
        "targets: row ",
        piece.result.bad_row,
        " of level ",
        piece.task.level,
        " has a label that is not one of ",
        K,
        " classes"
    );
    sum += piece.result.sum;
  }
  return sum;
}

struct Cpu {
  template <typename scalar_t>
  static void sigmoid(Call& call, bool reduce) {
    run<scalar_t>(call, reduce, [&] {
      return [&](const FocalTask& task) {
        return FASTVISION_CALL(
            sigmoid_focal_loss, static_cast<const scalar_t*>(nullptr), call.args, task
        );
      };
    });
  }

  template <typename scalar_t>
  static void softmax(Call& call, bool reduce) {
    using A = accumulate_t<scalar_t>;
    run<scalar_t>(call, reduce, [&] {
      return [&,
              scratch =
                  std::unique_ptr<A[]>(new A[focal_scratch(call.args.K)])](const FocalTask& task) {
        return FASTVISION_CALL(
            softmax_focal_loss,
            static_cast<const scalar_t*>(nullptr),
            call.args,
            task,
            scratch.get()
        );
      };
    });
  }

  template <typename scalar_t>
  static void scale(std::vector<Tensor>& grads, const Tensor& factor, double scale) {
    scale *= *static_cast<const accumulate_t<scalar_t>*>(factor.const_data_ptr());
    if (scale == 1) {
      return;
    }
    for (Tensor& grad : grads) {
      auto* data = static_cast<scalar_t*>(grad.mutable_data_ptr());
      parallel_chunks(grad.numel(), 4 * kPiece, [&] {
        return [&](int64_t begin, int64_t end) {
          FASTVISION_CALL(focal_loss_scale, data + begin, end - begin, scale);
        };
      });
    }
  }

 private:
  template <typename scalar_t, typename MakeWorker>
  static void run(Call& call, bool reduce, const MakeWorker& make_worker) {
    std::vector<Piece> pieces = cut(call.args);
    parallel_chunks(static_cast<int64_t>(pieces.size()), 1, [&] {
      return [&, worker = make_worker()](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          pieces[i].result = worker(pieces[i].task);
        }
      };
    });
    const double sum = sum_of(pieces, call.args.K);
    if (reduce) {
      using A = accumulate_t<scalar_t>;
      *static_cast<A*>(call.results[0].mutable_data_ptr()) = static_cast<A>(sum);
    }
  }
};

#ifdef USE_CUDA
struct Cuda {
  template <typename scalar_t>
  static void sigmoid(Call& call, bool reduce) {
    run(call, reduce, launch_sigmoid_focal_loss<scalar_t>);
  }

  template <typename scalar_t>
  static void softmax(Call& call, bool reduce) {
    run(call, reduce, launch_softmax_focal_loss<scalar_t>);
  }

  template <typename scalar_t>
  static void scale(std::vector<Tensor>& grads, const Tensor& factor, double scale) {
    const torch::stable::accelerator::DeviceGuard guard(factor.get_device_index());
    const cudaStream_t stream = current_cuda_stream(factor.get_device_index());
    for (Tensor& grad : grads) {
      launch_focal_loss_scale<scalar_t>(
          grad.mutable_data_ptr(), grad.numel(), factor.const_data_ptr(), scale, stream
      );
    }
  }

 private:
  template <typename Launch>
  static void run(Call& call, bool reduce, const Launch& launch) {
    const Tensor& first = call.inputs[0];
    const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
    const cudaStream_t stream = current_cuda_stream(first.get_device_index());
    STD_TORCH_CHECK(
        call.args.K <= INT32_MAX, "CUDA kernels cannot handle ", call.args.K, " classes"
    );
    const auto bytes = static_cast<int64_t>(focal_loss_workspace_bytes());
    const Tensor workspace = torch::stable::new_empty(first, {bytes}, ScalarType::Byte);
    void* total = reduce ? call.results[0].mutable_data_ptr() : nullptr;
    launch(call.args, total, workspace.mutable_data_ptr(), stream);
  }
};
#endif

template <typename Backend>
std::vector<Tensor> sigmoid_focal_loss(
    std::vector<Tensor> inputs,
    std::vector<Tensor> targets,
    double alpha,
    double gamma,
    bool reduce,
    double grad_scale
) {
  Call call(std::move(inputs), std::move(targets), gamma, reduce, grad_scale);
  call.args.alpha = alpha;
  if (!reduce) {
    call.write_losses(call.inputs[0]);
  }
  FASTVISION_DISPATCH_FLOATING(call.inputs[0].scalar_type(), "inputs", [&] {
    Backend::template sigmoid<scalar_t>(call, reduce);
  });
  return std::move(call.results);
}

template <typename Backend>
std::vector<Tensor> softmax_focal_loss(
    const Tensor& inputs,
    const Tensor& targets,
    const std::optional<Tensor>& weights,
    double gamma,
    int64_t ignore_index,
    bool reduce,
    double grad_scale
) {
  Call call({inputs}, {targets}, gamma, reduce, grad_scale);
  STD_TORCH_CHECK(call.args.labels, "targets must be int64 labels");
  call.args.ignore_index = ignore_index;
  Tensor class_weights;
  if (weights) {
    STD_TORCH_CHECK(
        weights->dim() == 1 && weights->size(0) == call.args.K &&
            weights->scalar_type() == accumulation_type(inputs.scalar_type()) &&
            weights->device() == inputs.device(),
        "weights must be [K] on the device of inputs, in float32, for float64 inputs float64"
    );
    class_weights = dense(*weights);
    call.args.class_weights = class_weights.const_data_ptr();
  }
  if (!reduce) {
    call.write_losses(call.targets[0]);
  }
  FASTVISION_DISPATCH_FLOATING(inputs.scalar_type(), "inputs", [&] {
    Backend::template softmax<scalar_t>(call, reduce);
  });
  return std::move(call.results);
}

template <typename Backend>
void focal_loss_scale(std::vector<Tensor> grads, const Tensor& factor, double scale) {
  STD_TORCH_CHECK(!grads.empty(), "grads must not be empty");
  const ScalarType dtype = grads[0].scalar_type();
  STD_TORCH_CHECK(
      factor.dim() == 0 && factor.scalar_type() == accumulation_type(dtype),
      "factor must be one number in float32, for float64 grads float64"
  );
  for (const Tensor& grad : grads) {
    STD_TORCH_CHECK(
        grad.scalar_type() == dtype && grad.device() == factor.device() && grad.is_contiguous(),
        "grads must be contiguous, of one dtype and on the device of factor"
    );
  }
  FASTVISION_DISPATCH_FLOATING(dtype, "grads", [&] {
    Backend::template scale<scalar_t>(grads, factor, scale);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("sigmoid_focal_loss", FASTVISION_BOX(&sigmoid_focal_loss<Cpu>));
  m.impl("softmax_focal_loss", FASTVISION_BOX(&softmax_focal_loss<Cpu>));
  m.impl("focal_loss_scale_", FASTVISION_BOX(&focal_loss_scale<Cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("sigmoid_focal_loss", FASTVISION_BOX(&sigmoid_focal_loss<Cuda>));
  m.impl("softmax_focal_loss", FASTVISION_BOX(&softmax_focal_loss<Cuda>));
  m.impl("focal_loss_scale_", FASTVISION_BOX(&focal_loss_scale<Cuda>));
}
#endif

}  // namespace fastvision
