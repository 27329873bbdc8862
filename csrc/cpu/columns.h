// Sums over the rows of a matrix, one for each column, with what is fused into that pass.
#pragma once

#include <cstdint>

#include "elements.h"

namespace clnp {

enum class Term { kValue, kAbs };

// sums[c] = sum over rows of x[r, c] or |x[r, c]|, accumulated in float64. If `relu`, x is
// rectified in place first. x has `columns` elements side by side in each row, rows are `stride` apart.
// The partition depends on the shape only, so the result does not depend on the number of threads.
void column_sums(ScalarType type, void* x, int64_t rows, int64_t columns, int64_t stride, Term term,
                 bool relu, double* sums);

// The sums as a tensor [columns] of `type`.
Tensor column_sums(const Tensor& x, Term term, bool relu, ScalarType type);

// x = max(x, 0) in place, NaN stays NaN; x is contiguous.
void relu_(const Tensor& x);

}  // namespace clnp
