// Checks of arguments. The Python functions check in full, with better texts; these keep a direct
// call of an operator from reading or writing out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

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
                  name, ".dtype: expected float32, bfloat16, float16 or float64");
}

// A tensor that joins `like`: same dtype, on the CPU.
inline void check_like(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name,
                  ".dtype: expected that of the other tensors; convert with .to()");
  STD_TORCH_CHECK(t.is_cpu(), name, ".device: expected cpu; move with .to()");
}

inline void check_matrix(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, name, ".shape: expected 2 dimensions, got ", shape_text(t));
}

inline void check_size(const char* name, const Tensor& t, int64_t dim, int64_t wanted) {
  STD_TORCH_CHECK(t.dim() > dim && t.size(dim) == wanted, name, ".shape: expected ", wanted,
                  " in dimension ", dim, ", got ", shape_text(t));
}

inline void check_bias(const char* name, const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias) return;
  check_like(name, *bias, weight);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), name, ".shape: expected [",
                  weight.size(0), "], got ", shape_text(*bias));
}

inline void check_activation(const std::string& activation) {
  STD_TORCH_CHECK(activation == "none" || activation == "relu",
                  "activation: expected 'none' or 'relu', got '", activation, "'");
}

// Raise unless 0 <= active <= y.size(1), the outputs to leave out at the front.
inline void check_active(int64_t active, const Tensor& t) {
  STD_TORCH_CHECK(0 <= active && active <= t.size(1), "active: expected 0 to ", t.size(1), ", got ",
                  active);
}

}  // namespace clnp
