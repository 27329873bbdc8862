// channel_activity: sum of |x| over every dimension but one.
#include "channels.h"

namespace clnp {

#define CLNP_FOR(T)                                                                              \
  CLNP_CLONES double abs_sum_of(const T* x, int64_t count) {                                     \
    return sum_run(                                                                              \
        count, [=](int64_t i) __attribute__((always_inline)) { return std::fabs(load(x[i])); }); \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

// `dim` as the last one, the others in their order.
Tensor permuted(const Tensor& x, int64_t dim) {
  Tensor result = x;
  for (int64_t d = dim; d + 1 < x.dim(); ++d) result = torch::stable::transpose(result, d, d + 1);
  return result;
}

// x [outer, channels, inner], contiguous: the planes of each channel are summed in place.
Tensor planes(const Tensor& x, int64_t outer, int64_t channels, int64_t inner) {
  Tensor result = torch::stable::new_empty(x, {channels}, sum_type(x.scalar_type()));
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* base = const_pointer<T>(x);
    wide_t<T>* out = pointer<wide_t<T>>(result);
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(outer * inner, 1), 1);
    torch::stable::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        double sum = 0;
        for (int64_t o = 0; o < outer; ++o)
          sum += abs_sum_of(base + (o * channels + c) * inner, inner);
        out[c] = static_cast<wide_t<T>>(sum);
      }
    });
  });
  return result;
}

Tensor channel_activity(const Tensor& x, int64_t dim) {
  check_float("x", x);
  STD_TORCH_CHECK(0 <= dim && dim < x.dim(), "dim: expected 0 to ", x.dim() - 1, ", got ", dim);
  const int64_t channels = x.size(dim);
  if (x.dim() == 2 && dim == 1)
    return column_sums(with_plain_rows(x), Term::kAbs, sum_type(x.scalar_type()));
  int64_t inner = 1, outer = 1;
  for (int64_t d = 0; d < x.dim(); ++d) (d < dim ? outer : inner) *= d == dim ? 1 : x.size(d);
  if (x.is_contiguous() && inner > 1) return planes(x, outer, channels, inner);
  // Channels last, after a copy where they are not.
  const Tensor rows = torch::stable::reshape(torch::stable::contiguous(permuted(x, dim)),
                                             {outer * inner, channels});
  return column_sums(rows, Term::kAbs, sum_type(x.scalar_type()));
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) {
  m.impl("channel_activity", TORCH_BOX(&clnp::channel_activity));
}
