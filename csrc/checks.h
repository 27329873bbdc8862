// Checks of arguments at the border. The Python functions check in full, with better words; these
// keep a direct call of an operator from reading or writing out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

namespace clnp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

inline void check_float(const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  name, ".dtype: wanted float32, bfloat16, float16 or float64");
}

// A tensor that joins `like`: same dtype, on the CPU.
inline void check_like(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name,
                  ".dtype: wanted that of the other tensors; convert with .to()");
  STD_TORCH_CHECK(t.is_cpu(), name, ".device: wanted cpu; move with .to()");
}

inline void check_matrix(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, name, ".shape: got ", shape_text(t), ", wanted 2 dimensions");
}

inline void check_size(const char* name, const Tensor& t, int64_t dim, int64_t wanted) {
  STD_TORCH_CHECK(t.dim() > dim && t.size(dim) == wanted, name, ".shape: got ", shape_text(t),
                  ", wanted ", wanted, " in dimension ", dim);
}

}  // namespace clnp
