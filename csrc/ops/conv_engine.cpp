#include "ops/conv_engine.h"

#include "common/parallel.h"
#include "ops/conv_groups.h"
#include "ops/conv_phase_run.h"
#include "ops/conv_worker.h"

namespace fastvision {
namespace {

template <typename S>
void run(const ConvPlan& plan) {
  using T = accumulate_t<S>;
  if (ConvGroups<S, T>::serves(plan)) {
    return ConvGroups<S, T>(plan).run();
  }
  using Run = PhaseRun<S, T>;
  std::vector<Run> runs;
  runs.reserve(plan.phases.size());
  int64_t work = 0;
  for (const ConvPhase& phase : plan.phases) {
    if (phase.grid_h > 0 && phase.grid_w > 0 && plan.input.N > 0) {
      runs.emplace_back(plan, phase);
      work += plan.input.N * phase.grid_h * phase.grid_w * phase.R * phase.S *
              (plan.input.C / plan.groups) * plan.output.C;
    }
  }
  const auto count = static_cast<int64_t>(runs.size());
  for (int64_t i = 0; i < count;) {
    i += Run::share_rows(&runs[i], count - i);
  }
  // phases with equal grids advance together, since they share inputs and interleave outputs
  for (size_t first = 0, last; first < runs.size(); first = last) {
    const int64_t tasks = runs[first].tasks();
    for (last = first + 1; last < runs.size() && runs[last].tasks() == tasks;) {
      ++last;
    }
    parallel_chunks(tasks, work < kSerialMultiplyAdds ? tasks : 1, [&] {
      return [&, worker = ConvWorker<S, T>()](int64_t begin, int64_t end) mutable {
        for (int64_t task = begin; task < end; ++task) {
          for (size_t i = first; i < last; ++i) {
            worker(runs[i], task);
          }
        }
      };
    });
  }
}

}  // namespace

ConvPacking conv_packing(ScalarType dtype, int64_t groups, int64_t C, int64_t K, int64_t taps) {
  ConvPacking packing{groups, C, K, taps, 0, 0};
  if (dtype == ScalarType::Double) {
    const double* type = nullptr;
    packing.lanes = FASTVISION_CALL(conv_lanes, type);
    packing.block = FASTVISION_CALL(conv_block, type);
  } else {
    const float* type = nullptr;
    packing.lanes = FASTVISION_CALL(conv_lanes, type);
    packing.block = FASTVISION_CALL(conv_block, type);
  }
  return packing;
}

ConvPacking conv_packing(const ConvPlan& plan, const ConvPhase& phase) {
  const ScalarType dtype =
      plan.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t C = plan.input.C / plan.groups, K = plan.output.C / plan.groups;
  return conv_packing(dtype, plan.groups, C, K, phase.R * phase.S);
}

void run_conv(const ConvPlan& plan) {
  FASTVISION_DISPATCH_FLOATING(plan.dtype, "input", [&] { run<scalar_t>(plan); });
}

}  // namespace fastvision
