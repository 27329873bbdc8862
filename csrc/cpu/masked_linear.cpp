// masked_linear and its gradients: products on slices, written straight into the result's columns.
#include <optional>
#include <tuple>

#include "columns.h"
#include "products.h"

namespace clnp {
namespace {

void check_weights(const Tensor& active_weight, const Tensor& free_weight, const Tensor& like) {
  check_matrix("active_weight", active_weight);
  check_matrix("free_weight", free_weight);
  check_like("active_weight", active_weight, like);
  check_like("free_weight", free_weight, like);
  STD_TORCH_CHECK(active_weight.size(1) <= free_weight.size(1), "active_weight.shape: got ",
                  shape_text(active_weight), ", wanted at most ", free_weight.size(1), " columns");
}

void check_bias(const char* name, const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias) return;
  check_like(name, *bias, weight);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), name, ".shape: got ",
                  shape_text(*bias), ", wanted [", weight.size(0), "]");
}

std::tuple<Tensor, Tensor> masked_linear_fwd(const Tensor& x, const Tensor& active_weight,
                                             const Tensor& free_weight,
                                             const std::optional<Tensor>& active_bias,
                                             const std::optional<Tensor>& free_bias,
                                             const std::string& activation, bool activity,
                                             bool full_input_grad) {
  check_float("x", x);
  check_matrix("x", x);
  check_weights(active_weight, free_weight, x);
  check_size("x", x, 1, free_weight.size(1));
  check_bias("active_bias", active_bias, active_weight);
  check_bias("free_bias", free_bias, free_weight);
  STD_TORCH_CHECK(activation == "none" || activation == "relu", "activation: got '", activation,
                  "', wanted 'none' or 'relu'");
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

// Distances between the rows of the three matrices.
struct Strides {
  int64_t grad, y, out;
};

// out = gradient where y > 0; sums over the rows if asked for.
template <class T>
CLNP_INLINE void relu_grad(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ out,
                           Strides strides, int64_t rows, int64_t columns, double* sums) {
  using W = wide_t<T>;
  const auto term = [=](int64_t r, int64_t c) __attribute__((always_inline)) -> W {
    const W value = load(y[r * strides.y + c]) <= 0 ? W(0) : load(grad[r * strides.grad + c]);
    store(out + r * strides.out + c, value);
    return value;
  };
  sum_piece<W>(rows, columns, sums, term);
}

}  // namespace

#define CLNP_FOR(T)                                                                               \
  CLNP_CLONES void relu_grad_of(const T* grad, const T* y, T* out, Strides strides, int64_t rows, \
                                int64_t columns, double* sums) {                                  \
    relu_grad(grad, y, out, strides, rows, columns, sums);                                        \
  }
CLNP_EVERY_ELEMENT(CLNP_FOR)
#undef CLNP_FOR

namespace {

std::tuple<Tensor, Tensor> masked_linear_relu_grad(const Tensor& grad_y, const Tensor& y,
                                                   int64_t active, bool bias) {
  check_float("grad_y", grad_y);
  check_matrix("grad_y", grad_y);
  check_matrix("y", y);
  check_like("y", y, grad_y);
  check_size("y", y, 0, grad_y.size(0));
  check_size("y", y, 1, grad_y.size(1));
  STD_TORCH_CHECK(0 <= active && active <= y.size(1), "active: got ", active, ", wanted 0 to ",
                  y.size(1));
  const int64_t rows = y.size(0), columns = y.size(1) - active;
  const Tensor g = with_plain_rows(grad_y), z = with_plain_rows(y);
  Tensor out = torch::stable::new_empty(grad_y, {rows, columns});
  std::vector<double> sums(columns);
  const Strides strides{g.stride(0), z.stride(0), columns};
  visit(y.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T *from_g = const_pointer<T>(g) + active, *from_z = const_pointer<T>(z) + active;
    T* to = pointer<T>(out);
    sum_pieces(rows, columns, sums.data(),
               [&](int64_t r, int64_t count, int64_t c, int64_t width, double* part) {
                 relu_grad_of(from_g + r * strides.grad + c, from_z + r * strides.y + c,
                              to + r * columns + c, strides, count, width, part);
               });
  });
  if (!bias) sums.clear();
  return {out, sums_tensor(grad_y, sums, grad_y.scalar_type())};
}

// to[r, :] += from[r, :] for the first `columns` columns
void add_columns(const Tensor& to, const Tensor& from, int64_t columns) {
  visit(to.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    T* target = pointer<T>(to);
    const T* source = const_pointer<T>(from);
    for (int64_t r = 0; r < to.size(0); ++r)
      for (int64_t c = 0; c < columns; ++c) {
        T* at = target + r * to.stride(0) + c;
        store(at, load(*at) + load(source[r * columns + c]));
      }
  });
}

Tensor masked_linear_dgrad(const Tensor& grad_z, const Tensor& active_weight,
                           const Tensor& free_weight, bool full_input_grad) {
  check_float("grad_z", grad_z);
  check_matrix("grad_z", grad_z);
  check_weights(active_weight, free_weight, grad_z);
  const int64_t active_out = active_weight.size(0), free_out = free_weight.size(0);
  const int64_t active_in = active_weight.size(1), inputs = free_weight.size(1);
  check_size("grad_z", grad_z, 1, free_out + (full_input_grad ? active_out : 0));
  Tensor grad_x = torch::stable::new_empty(grad_z, {grad_z.size(0), inputs});
  if (grad_x.numel() == 0) return grad_x;
  if (full_input_grad) {
    mm_out(slice_of(grad_z, active_out, free_out), free_weight, grad_x);
    Tensor from_active = torch::stable::new_empty(grad_z, {grad_z.size(0), active_in});
    mm_out(slice_of(grad_z, 0, active_out), active_weight, from_active);
    add_columns(grad_x, from_active, active_in);
    return grad_x;
  }
  if (active_in > 0) {
    Tensor active = slice_of(grad_x, 0, active_in);
    torch::stable::zero_(active);
  }
  if (active_in < inputs)
    mm_out(grad_z, slice_of(free_weight, active_in, inputs - active_in),
           slice_of(grad_x, active_in, inputs - active_in));
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
