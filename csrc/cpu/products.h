// Products of matrices, written straight into the result's columns.
#pragma once

#include <array>
#include <optional>

#include "dispatch.h"
#include "elements.h"

namespace clnp {

// out = a @ b
inline void mm_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  call("aten::mm", "out", stack.data());
  to<Tensor>(stack[0]);
}

// out = x @ weight.T + bias, by the very call that torch.nn.functional.linear makes
inline void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Tensor& out) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  if (out.numel() == 0) return;
  std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(out)};
  call("aten::linear", "out", stack.data());
  to<Tensor>(stack[0]);
}

}  // namespace clnp
