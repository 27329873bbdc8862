#include "columns.h"

#include <vector>

namespace clnp {
namespace {

constexpr int64_t kColumns = 256;  // of one piece of work: its float64 sums stay in the L1 cache
constexpr int64_t kRows = 512;
constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it saves

template <class T>
CLNP_INLINE wide_t<T> rectified(T* at, bool relu) {
  const wide_t<T> value = load(*at);
  if (!relu) return value;
  const wide_t<T> result = value < 0 ? wide_t<T>(0) : value;
  store(at, result);
  return result;
}

template <class T>
CLNP_INLINE double term_of(T* at, bool relu, bool abs) {
  const double value = static_cast<double>(rectified(at, relu));
  return abs ? std::fabs(value) : value;
}

// Four rows at a time, so that the sums are loaded and stored a quarter as often.
template <bool relu, bool abs, class T>
CLNP_INLINE void sum_piece(T* __restrict__ x, int64_t rows, int64_t columns, int64_t stride,
                           double* __restrict__ sums) {
  for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    T* a = x + r * stride;
    T *b = a + stride, *d = b + stride, *e = d + stride;
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      sums[c] += (term_of(a + c, relu, abs) + term_of(b + c, relu, abs)) +
                 (term_of(d + c, relu, abs) + term_of(e + c, relu, abs));
    }
  }
  for (; r < rows; ++r) {
    T* a = x + r * stride;
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) sums[c] += term_of(a + c, relu, abs);
  }
}

template <class T>
CLNP_INLINE void sum_piece(T* x, int64_t rows, int64_t columns, int64_t stride, bool relu, bool abs,
                           double* sums) {
  if (relu) return sum_piece<true, true>(x, rows, columns, stride, sums);
  if (abs) return sum_piece<false, true>(x, rows, columns, stride, sums);
  return sum_piece<false, false>(x, rows, columns, stride, sums);
}

template <class T>
CLNP_INLINE void relu_piece(T* x, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) rectified(x + i, true);
}

}  // namespace

#define CLNP_FOR(T)                                                                               \
  CLNP_CLONES void sum_piece_of(T* x, int64_t rows, int64_t columns, int64_t stride, bool relu,   \
                                bool abs, double* sums) {                                         \
    sum_piece(x, rows, columns, stride, relu, abs, sums);                                         \
  }                                                                                               \
  CLNP_CLONES void relu_piece_of(T* x, int64_t count) { relu_piece(x, count); }
CLNP_FOR(float)
CLNP_FOR(double)
CLNP_FOR(BFloat16)
CLNP_FOR(Half)
#undef CLNP_FOR

void column_sums(ScalarType type, void* x, int64_t rows, int64_t columns, int64_t stride, Term term,
                 bool relu, double* sums) {
  const int64_t down = std::max<int64_t>((rows + kRows - 1) / kRows, 1);
  const int64_t across = (columns + kColumns - 1) / kColumns;
  std::vector<double> partial(down > 1 ? down * columns : 0);
  double* target = down > 1 ? partial.data() : sums;
  const int64_t piece = std::min(rows, kRows) * std::min(columns, kColumns);
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(piece, 1), 1);
  visit(type, [&](auto* null) {
    auto* base = static_cast<decltype(null)>(x);
    torch::stable::parallel_for(0, down * across, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i / across * kRows, c = i % across * kColumns;
        sum_piece_of(base + r * stride + c, std::min(rows - r, kRows),
                     std::min(columns - c, kColumns), stride, relu, term == Term::kAbs,
                     target + (i / across) * columns + c);
      }
    });
  });
  if (down == 1) return;
  std::fill(sums, sums + columns, 0.0);
  for (int64_t d = 0; d < down; ++d)
    for (int64_t c = 0; c < columns; ++c) sums[c] += partial[d * columns + c];
}

Tensor column_sums(const Tensor& x, Term term, bool relu, ScalarType type) {
  const int64_t columns = x.size(1);
  std::vector<double> sums(columns);
  void* data = relu ? x.mutable_data_ptr() : const_cast<void*>(x.const_data_ptr());
  // Without relu the data are only read.
  column_sums(x.scalar_type(), data, x.size(0), columns, x.stride(0), term, relu, sums.data());
  Tensor result = torch::stable::new_empty(x, {columns}, type);
  visit(type, [&](auto* null) {
    auto* out = static_cast<decltype(null)>(result.mutable_data_ptr());
    for (int64_t c = 0; c < columns; ++c)
      store(out + c, static_cast<wide_t<std::remove_pointer_t<decltype(null)>>>(sums[c]));
  });
  return result;
}

void relu_(const Tensor& x) {
  visit(x.scalar_type(), [&](auto* null) {
    auto* base = static_cast<decltype(null)>(x.mutable_data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      relu_piece_of(base + begin, end - begin);
    });
  });
}

}  // namespace clnp
