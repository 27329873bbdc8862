// masked_linear and its gradients: products on slices, written straight into the result's columns.
#include <optional>
#include <tuple>

#include "columns.h"
#include "products.h"

namespace clnp {
namespace {

std::tuple<Tensor, Tensor> masked_linear_fwd(const Tensor& x, const Tensor& active_weight,
                                             const Tensor& free_weight,
                                             const std::optional<Tensor>& active_bias,
                                             const std::optional<Tensor>& free_bias,
                                             const std::string& activation, bool activity) {
  check_float("x", x);
  check_matrix("x", x);
  check_matrix("active_weight", active_weight);
  check_matrix("free_weight", free_weight);
  check_like("active_weight", active_weight, x);
  check_like("free_weight", free_weight, x);
  STD_TORCH_CHECK(active_weight.size(1) <= free_weight.size(1),
                  "active_weight.shape: expected at most ", free_weight.size(1), " columns, got ",
                  shape_text(active_weight));
  check_size("x", x, 1, free_weight.size(1));
  check_bias("active_bias", active_bias, active_weight);
  check_bias("free_bias", free_bias, free_weight);
  check_activation(activation);
  const int64_t active_out = active_weight.size(0), free_out = free_weight.size(0);
  const bool relu = activation == "relu";
  Tensor y = torch::stable::new_empty(x, {x.size(0), active_out + free_out});
  linear_out(slice_of(x, 0, active_weight.size(1)), active_weight, active_bias,
             slice_of(y, 0, active_out));
  linear_out(x, free_weight, free_bias, slice_of(y, active_out, free_out));
  const ScalarType sums = sum_type(x.scalar_type());
  if (activity) return {y, column_sums(y, relu ? Term::kReluAbs : Term::kAbs, sums)};
  if (relu) relu_(y);
  return {y, torch::stable::new_empty(x, {0}, sums)};
}

std::tuple<Tensor, Tensor> masked_linear_relu_grad(const Tensor& grad_y, const Tensor& y,
                                                   int64_t active, bool bias) {
  check_float("grad_y", grad_y);
  check_matrix("grad_y", grad_y);
  check_matrix("y", y);
  check_like("y", y, grad_y);
  check_size("y", y, 0, grad_y.size(0));
  check_size("y", y, 1, grad_y.size(1));
  check_active(active, y);
  const int64_t rows = y.size(0), columns = y.size(1) - active;
  const Tensor g = with_plain_rows(grad_y), z = with_plain_rows(y);
  Tensor out = torch::stable::new_empty(grad_y, {rows, columns});
  std::vector<double> sums(columns);
  const RowStrides strides{g.stride(0), z.stride(0), columns};
  visit(y.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T *from_g = const_pointer<T>(g) + active, *from_z = const_pointer<T>(z) + active;
    T* to = pointer<T>(out);
    sum_pieces(rows, columns, sums.data(),
               [&](int64_t r, int64_t count, int64_t c, int64_t width, double* part) {
                 open_rows_of(from_g + r * strides.grad + c, from_z + r * strides.y + c,
                              to + r * columns + c, strides, count, width, part);
               });
  });
  if (!bias) sums.clear();
  return {out, sums_tensor(grad_y, sums, grad_y.scalar_type())};
}

Tensor masked_linear_dgrad(const Tensor& grad_z, const Tensor& free_weight, int64_t active) {
  check_float("grad_z", grad_z);
  check_matrix("grad_z", grad_z);
  check_matrix("free_weight", free_weight);
  check_like("free_weight", free_weight, grad_z);
  check_size("grad_z", grad_z, 1, free_weight.size(0));
  check_active(active, free_weight);
  const int64_t inputs = free_weight.size(1), free = inputs - active;
  Tensor grad_x = torch::stable::new_empty(grad_z, {grad_z.size(0), inputs});
  if (grad_x.numel() == 0) return grad_x;
  if (active > 0) {
    Tensor front = slice_of(grad_x, 0, active);
    torch::stable::zero_(front);
  }
  if (free > 0) mm_out(grad_z, slice_of(free_weight, active, free), slice_of(grad_x, active, free));
  return grad_x;
}

std::tuple<Tensor, Tensor> masked_linear_wgrad(const Tensor& grad_z, const Tensor& x, bool bias) {
  check_float("grad_z", grad_z);
  check_matrix("grad_z", grad_z);
  check_matrix("x", x);
  check_like("x", x, grad_z);
  check_size("x", x, 0, grad_z.size(0));
  Tensor weight = torch::stable::new_empty(grad_z, {grad_z.size(1), x.size(1)});
  if (weight.numel() > 0) mm_out(torch::stable::transpose(grad_z, 0, 1), x, weight);
  if (!bias) return {weight, torch::stable::new_empty(grad_z, {0})};
  return {weight, column_sums(with_plain_rows(grad_z), Term::kValue, grad_z.scalar_type())};
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) {
  m.impl("masked_linear_fwd", TORCH_BOX(&clnp::masked_linear_fwd));
  m.impl("masked_linear_relu_grad", TORCH_BOX(&clnp::masked_linear_relu_grad));
  m.impl("masked_linear_dgrad", TORCH_BOX(&clnp::masked_linear_dgrad));
  m.impl("masked_linear_wgrad", TORCH_BOX(&clnp::masked_linear_wgrad));
}
