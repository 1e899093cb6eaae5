// torch utilities for csrc/ops: checks, dtype dispatch and checked boxing, on the stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/scalar.h"

namespace fastvision {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// TORCH_BOX does not check argument types: a float or int parameter would read garbage
template <typename T>
struct boxable : std::disjunction<
                     std::is_same<T, Tensor>,
                     std::is_same<T, int64_t>,
                     std::is_same<T, double>,
                     std::is_same<T, bool>,
                     std::is_same<T, void>> {};
template <typename T>
struct boxable<std::vector<T>> : boxable<T> {};
template <typename T>
struct boxable<std::optional<T>> : boxable<T> {};
template <typename... T>
struct boxable<std::tuple<T...>> : std::conjunction<boxable<T>...> {};

template <typename R, typename... A>
constexpr void check_boxable(R (*)(A...)) {
  static_assert(
      boxable<R>::value && (boxable<std::remove_cv_t<std::remove_reference_t<A>>>::value && ...),
      "a kernel takes and returns Tensor, int64_t, double, bool and vectors, optionals, tuples of "
      "them"
  );
}

inline void check_dim(const Tensor& t, int64_t dim, const char* name) {
  STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

}  // namespace fastvision

#define FASTVISION_BOX(function) (::fastvision::check_boxable(function), TORCH_BOX(function))

// Calls the lambda with scalar_t = float, double, half_t or bfloat16_t.
#define FASTVISION_DISPATCH_CASE(TORCH_TYPE, KERNEL_TYPE, ...) \
  case ::torch::headeronly::ScalarType::TORCH_TYPE: {          \
    using scalar_t = KERNEL_TYPE;                              \
    __VA_ARGS__();                                             \
    break;                                                     \
  }
#define FASTVISION_DISPATCH_FLOATING(DTYPE, NAME, ...)                                \
  switch (DTYPE) {                                                                    \
    FASTVISION_DISPATCH_CASE(Float, float, __VA_ARGS__)                               \
    FASTVISION_DISPATCH_CASE(Double, double, __VA_ARGS__)                             \
    FASTVISION_DISPATCH_CASE(Half, ::fastvision::half_t, __VA_ARGS__)                 \
    FASTVISION_DISPATCH_CASE(BFloat16, ::fastvision::bfloat16_t, __VA_ARGS__)         \
    default:                                                                          \
      STD_TORCH_CHECK(false, NAME, " must be float16, bfloat16, float32 or float64"); \
  }
