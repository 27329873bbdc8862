// Lists of tensors, one entry for each parameter, as the optimizers take them.
#pragma once

#include <numeric>

#include "checks.h"

namespace clnp {

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device() == b.get_device();
}

// Raise unless `tensors` fit the parameters one by one and are on the device of the first.
inline void check_list(const char* name, const std::vector<Tensor>& tensors,
                       const std::vector<Tensor>& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), name, ": expected ", params.size(),
                  " tensors, as many as params, got ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_float(name, tensors[i]);
    STD_TORCH_CHECK(tensors[i].scalar_type() == params[i].scalar_type(), name,
                    ".dtype: expected that of params; convert with .to()");
    STD_TORCH_CHECK(same_device(tensors[i], params[0]), name,
                    ".device: expected that of params; move with .to()");
    STD_TORCH_CHECK(same_shape(tensors[i], params[i]), name, "[", i, "].shape: expected ",
                    shape_text(params[i]), ", got ", shape_text(tensors[i]));
  }
}

// Raise unless there is one number for each parameter.
template <class T>
void check_numbers(const char* name, const std::vector<T>& numbers,
                   const std::vector<Tensor>& params) {
  STD_TORCH_CHECK(numbers.size() == params.size(), name, ": expected ", params.size(),
                  " numbers, as many as params, got ", numbers.size());
}

inline void check_steps(const std::vector<Tensor>& steps, const std::vector<Tensor>& params) {
  check_numbers("steps", steps, params);
  for (const Tensor& step : steps)
    STD_TORCH_CHECK(same_device(step, params[0]) && step.numel() == 1 &&
                        step.scalar_type() == ScalarType::Float,
                    "steps: expected float32 tensors of one element on the device of params");
}

// Whether the elements fill one run of memory, in any order of the dimensions.
inline bool is_dense(const Tensor& t) {
  std::vector<int64_t> order(t.dim());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return t.stride(a) < t.stride(b); });
  int64_t expected = 1;
  for (const int64_t d : order) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Whether the tensors of one parameter are dense and have the same strides (channels_last, say):
// elements that belong together are then at the same place of each run of memory.
inline bool same_layout(const std::vector<Tensor>& tensors) {
  const Tensor& first = tensors[0];
  return is_dense(first) && std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& t) {
           for (int64_t d = 0; d < t.dim(); ++d)
             if (t.size(d) != 1 && t.stride(d) != first.stride(d)) return false;
           return true;
         });
}

}  // namespace clnp
