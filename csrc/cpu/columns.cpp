#include "columns.h"

namespace clnp {
namespace {

template <class T>
CLNP_INLINE wide_t<T> rectify(T* at) {
  const wide_t<T> value = load(*at);
  const wide_t<T> result = value < 0 ? wide_t<T>(0) : value;
  store(at, result);
  return result;
}

template <class T>
CLNP_INLINE void sum_terms(T* __restrict__ x, int64_t rows, int64_t columns, int64_t stride,
                           Term term, double* __restrict__ sums) {
  using W = wide_t<T>;
  switch (term) {
    case Term::kValue:
      return sum_piece<W>(rows, columns, sums,
                          [=](int64_t r, int64_t c) __attribute__((always_inline)) -> W {
                            return load(x[r * stride + c]);
                          });
    case Term::kAbs:
      return sum_piece<W>(rows, columns, sums,
                          [=](int64_t r, int64_t c) __attribute__((always_inline)) -> W {
                            return std::fabs(load(x[r * stride + c]));
                          });
    case Term::kReluAbs:
      return sum_piece<W>(rows, columns, sums,
                          [=](int64_t r, int64_t c) __attribute__((always_inline)) -> W {
                            return std::fabs(rectify(x + r * stride + c));
                          });
  }
}

template <class T>
CLNP_INLINE void open_rows(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ out,
                           RowStrides strides, int64_t rows, int64_t columns, double* sums) {
  sum_piece<wide_t<T>>(
      rows, columns, sums, [=](int64_t r, int64_t c) __attribute__((always_inline)) {
        const wide_t<T> value = opened<true>(grad + r * strides.grad + c, y + r * strides.y + c);
        store(out + r * strides.out + c, value);
        return value;
      });
}

template <class T>
CLNP_INLINE void relu_run(T* x, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) rectify(x + i);
}

}  // namespace

#define CLNP_FOR(T)                                                                             \
  CLNP_CLONES void sum_terms_of(T* x, int64_t rows, int64_t columns, int64_t stride, Term term, \
                                double* sums) {                                                 \
    sum_terms(x, rows, columns, stride, term, sums);                                            \
  }                                                                                             \
  CLNP_CLONES void open_rows_of(const T* grad, const T* y, T* out, RowStrides strides,          \
                                int64_t rows, int64_t columns, double* sums) {                  \
    open_rows(grad, y, out, strides, rows, columns, sums);                                      \
  }                                                                                             \
  CLNP_CLONES void relu_run_of(T* x, int64_t count) { relu_run(x, count); }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

Tensor column_sums(const Tensor& x, Term term, ScalarType type) {
  std::vector<double> sums(x.size(1));
  const int64_t stride = x.stride(0);
  visit(x.scalar_type(), [&](auto* null) {
    // Written to for kReluAbs only.
    const void* data = term == Term::kReluAbs ? x.mutable_data_ptr() : x.const_data_ptr();
    auto* base = static_cast<decltype(null)>(const_cast<void*>(data));
    sum_pieces(x.size(0), x.size(1), sums.data(),
               [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* to) {
                 sum_terms_of(base + r * stride + c, rows, columns, stride, term, to);
               });
  });
  return sums_tensor(x, sums, type);
}

Tensor sums_tensor(const Tensor& like, const std::vector<double>& sums, ScalarType type) {
  const int64_t count = static_cast<int64_t>(sums.size());
  Tensor result = torch::stable::new_empty(like, {count}, type);
  visit(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    T* out = pointer<T>(result);
    for (int64_t c = 0; c < count; ++c) store(out + c, static_cast<wide_t<T>>(sums[c]));
  });
  return result;
}

void relu_(const Tensor& x) {
  visit(x.scalar_type(), [&](auto* null) {
    auto* base = static_cast<decltype(null)>(x.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      relu_run_of(base + begin, end - begin);
    });
  });
}

}  // namespace clnp
