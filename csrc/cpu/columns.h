// Sums over the rows of a matrix, one for each column, fused with work on its elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "elements.h"

namespace clnp {

constexpr int64_t kColumns = 256;  // of one piece of work: its float64 sums stay in the L1 cache
constexpr int64_t kRows = 512;
constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it saves

// t[:, start : start + length]: columns of a matrix, channels of images.
inline Tensor slice_of(const Tensor& t, int64_t start, int64_t length) {
  Tensor source = t;
  if (start == 0 && length == t.size(1)) return source;
  return torch::stable::narrow(source, 1, start, length);
}

// sums[c] = sum over rows of term(r, c), where term may write elements (r, c). Four rows at a time,
// added in the element's own width, then in float64: the sums are loaded and stored a quarter as
// often.
template <class W, class F>
CLNP_INLINE void sum_piece(int64_t rows, int64_t columns, double* __restrict__ sums,
                           const F& term) {
  for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      const W four = (term(r, c) + term(r + 1, c)) + (term(r + 2, c) + term(r + 3, c));
      sums[c] += static_cast<double>(four);
    }
  }
  for (; r < rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) sums[c] += static_cast<double>(term(r, c));
  }
}

// Call piece(row, rows, column, columns, sums) for all pieces of a matrix, in parallel, and add up
// the sums. The partition depends on the shape only, so the result does not depend on the number of
// threads.
template <class F>
void sum_pieces(int64_t rows, int64_t columns, double* sums, const F& piece) {
  const int64_t down = std::max<int64_t>((rows + kRows - 1) / kRows, 1);
  const int64_t across = (columns + kColumns - 1) / kColumns;
  std::vector<double> partial(down > 1 ? down * columns : 0);
  double* target = down > 1 ? partial.data() : sums;
  const int64_t size = std::max<int64_t>(std::min(rows, kRows) * std::min(columns, kColumns), 1);
  const int64_t grain = std::max<int64_t>(kGrain / size, 1);
  torch::stable::parallel_for(0, down * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / across * kRows, c = i % across * kColumns;
      piece(r, std::min(rows - r, kRows), c, std::min(columns - c, kColumns),
            target + i / across * columns + c);
    }
  });
  if (down == 1) return;
  std::fill(sums, sums + columns, 0.0);
  for (int64_t d = 0; d < down; ++d)
    for (int64_t c = 0; c < columns; ++c) sums[c] += partial[d * columns + c];
}

// Gradient before a ReLU. The gradient is read in any case: of a read under a condition GCC 12
// makes wrong code for float64 and AVX-512. kRelu is a template argument because loops over
// bfloat16 that ask at run time do not vectorise.
template <bool kRelu, class T>
CLNP_INLINE wide_t<T> opened(const T* grad, const T* y) {
  const wide_t<T> given = load(*grad);
  if constexpr (!kRelu) return given;
  const wide_t<T> value = load(*y);
  return value <= 0 ? wide_t<T>(0) : given;
}

// Distances between the rows of three matrices.
struct RowStrides {
  int64_t grad, y, out;
};

// out = the gradient before the ReLU; sums over the rows.
#define CLNP_FOR(T)                                                                      \
  void open_rows_of(const T* grad, const T* y, T* out, RowStrides strides, int64_t rows, \
                    int64_t columns, double* sums);
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

enum class Term { kValue, kAbs, kReluAbs };

// Sums over the rows of x [rows, columns], a matrix with plain rows, as a tensor [columns] of
// `type`: of its values, of their absolute values, or of these after a ReLU in place.
Tensor column_sums(const Tensor& x, Term term, ScalarType type);

// The sums as a tensor of `type` on the device of `like`.
Tensor sums_tensor(const Tensor& like, const std::vector<double>& sums, ScalarType type);

// x = max(x, 0) in place, NaN stays NaN; x is contiguous.
void relu_(const Tensor& x);

}  // namespace clnp
