// partial_layer_norm and its gradients: one pass over a row and its blocks, in parallel over rows.
// The sums of a block begin anew at its first channel, so they have the same bits whatever lies
// behind the block.
#include <optional>
#include <tuple>
#include <vector>

#include "columns.h"
#include "vectors.h"

namespace clnp {
namespace {

constexpr int64_t kRun = 1024;    // elements that are added in their own width, then in float64
constexpr int64_t kGroup = 64;    // rows whose gradients are added in the width of an element
constexpr int64_t kPieces = 128;  // the most sums over rows that are added apart

template <class W>
struct Pair {
  W first, second;
};

// The sum of N numbers, by halves.
template <int64_t N, class W>
CLNP_INLINE W fold(W* lanes) {
  if constexpr (N == 1) return lanes[0];
#pragma GCC ivdep
  for (int64_t j = 0; j < N / 2; ++j) lanes[j] += lanes[j + N / 2];
  return fold<std::max<int64_t>(N / 2, 1)>(lanes);
}

// Adds term(i), for i from start to stop and N at a time, to sum; returns where it stopped. The
// second part counts with kTwo only.
template <bool kTwo, int64_t N, class W, class F>
CLNP_INLINE int64_t add_lanes(int64_t start, int64_t stop, const F& term, Pair<W>& sum) {
  if (stop - start < N) return start;
  W first[N], second[N];
#pragma GCC ivdep
  for (int64_t j = 0; j < N; ++j) {
    const Pair<W> t = term(start + j);
    first[j] = t.first;
    second[j] = t.second;
  }
  int64_t i = start + N;
  for (; i + N <= stop; i += N) {
#pragma GCC ivdep
    for (int64_t j = 0; j < N; ++j) {
      const Pair<W> t = term(i + j);
      first[j] += t.first;
      if constexpr (kTwo) second[j] += t.second;
    }
  }
  sum.first += fold<N>(first);
  if constexpr (kTwo) sum.second += fold<N>(second);
  return i;
}

// Sums over i < count of term(i), in an order that depends on count only.
template <bool kTwo, class W, class F>
CLNP_INLINE Pair<double> sum_pair(int64_t count, const F& term) {
  Pair<double> total{0, 0};
  for (int64_t start = 0; start < count; start += kRun) {
    const int64_t stop = std::min(start + kRun, count);
    Pair<W> sum{0, 0};
    int64_t i = add_lanes<kTwo, 32>(start, stop, term, sum);
    i = add_lanes<kTwo, 8>(i, stop, term, sum);
    add_lanes<kTwo, 1>(i, stop, term, sum);
    total.first += static_cast<double>(sum.first);
    total.second += static_cast<double>(sum.second);
  }
  return total;
}

// A block of channels that is not empty.
struct Block {
  int64_t start, end;
  double of_size, of_end, share;  // 1 / size, 1 / end, size / end
};

// Blocks and the vectors of all channels.
template <class W>
struct Norm {
  const Block* blocks;
  int64_t count;
  const W *weight, *bias;
  double eps;
  int64_t skipped;  // channels at the front of which no output is wanted
};

// Mean of a block and sum of squares around it.
template <class T>
CLNP_INLINE Pair<double> moments(const T* x, const Block& block) {
  using W = wide_t<T>;
  const int64_t count = block.end - block.start;
  const Pair<double> sums = sum_pair<false, W>(
      count, [=](int64_t i) __attribute__((always_inline)) -> Pair<W> { return {load(x[i]), 0}; });
  const W near = static_cast<W>(sums.first * block.of_size);
  const Pair<double> rest =
      sum_pair<true, W>(count, [=](int64_t i) __attribute__((always_inline)) -> Pair<W> {
        const W d = load(x[i]) - near;
        return {d, d * d};
      });
  // The distance of `near` from the mean is its rounding and that of the sum.
  const double distance = rest.first * block.of_size, squares = rest.second - rest.first * distance;
  return {static_cast<double>(near) + distance, squares < 0 ? 0 : squares};
}

template <class T>
CLNP_INLINE double square_sum(const T* x, int64_t count) {
  using W = wide_t<T>;
  return sum_pair<false, W>(count,
                            [=](int64_t i) __attribute__((always_inline)) -> Pair<W> {
                              const W value = load(x[i]);
                              return {value * value, 0};
                            })
      .first;
}

template <bool kRms, class T>
CLNP_INLINE void normal_row(const T* x, T* y, const Norm<wide_t<T>>& norm, wide_t<T>* mean,
                            wide_t<T>* rstd) {
  using W = wide_t<T>;
  double centre = 0, squares = 0;
  W m = 0, s = 1 / std::sqrt(static_cast<W>(norm.eps));
  for (int64_t b = 0; b < norm.count; ++b) {
    const Block block = norm.blocks[b];
    const int64_t start = block.start, count = block.end - start;
    if constexpr (kRms) {
      squares += square_sum(x + start, count);
    } else {
      // Chan, Golub & LeVeque 1979: squares around the common mean
      const Pair<double> own = moments(x + start, block);
      const double apart = own.first - centre;
      squares += own.second + apart * apart * (static_cast<double>(start) * block.share);
      centre += apart * block.share;
      m = static_cast<W>(centre);
    }
    s = 1 / std::sqrt(static_cast<W>(squares * block.of_end + norm.eps));
    if (block.end <= norm.skipped) continue;
    const W *weight = norm.weight + start, *bias = norm.bias + start;
    const T* in = x + start;
    T* out = y + (start - norm.skipped);
#pragma GCC ivdep
    for (int64_t c = 0; c < count; ++c) {
      const W value = kRms ? load(in[c]) : load(in[c]) - m;
      store(out + c, value * s * weight[c] + bias[c]);
    }
  }
  if (!kRms) *mean = m;
  *rstd = s;
}

// Distances between the rows of the gradient, of x and of the result.
struct Strides {
  int64_t grad, x, out;
};

// grad_x = grad * weight * rstd + (x - mean) * slope + offset of a row, of which the sums over the
// rows of both vectors' gradients are made too.
template <bool kRms, class T>
CLNP_INLINE void slope_row(const T* grad, const T* x, T* out, const wide_t<T>* __restrict__ weight,
                           int64_t free, wide_t<T> mean, wide_t<T> rstd, double inverse,
                           wide_t<T>* __restrict__ of_weight, wide_t<T>* __restrict__ of_bias) {
  using W = wide_t<T>;
  const Pair<double> sums =
      sum_pair<!kRms, W>(free, [=](int64_t c) __attribute__((always_inline)) -> Pair<W> {
        const W g = load(grad[c]) * weight[c];
        return {g * (kRms ? load(x[c]) : load(x[c]) - mean), g};
      });
  const double r = static_cast<double>(rstd);
  const W slope = static_cast<W>(-r * r * r * sums.first * inverse);
  const W offset = static_cast<W>(-r * sums.second * inverse);
#pragma GCC ivdep
  for (int64_t c = 0; c < free; ++c) {
    const W g = load(grad[c]), d = kRms ? load(x[c]) : load(x[c]) - mean;
    const W value = g * weight[c] * rstd + d * slope;
    store(out + c, kRms ? value : value + offset);
    of_weight[c] += g * (d * rstd);
    of_bias[c] += g;
  }
}

}  // namespace

#define CLNP_FOR(T)                                                                               \
  CLNP_CLONES void normal_rows(const T* x, T* y, int64_t x_row, int64_t y_row,                    \
                               Norm<wide_t<T>> norm, bool rms, wide_t<T>* mean, wide_t<T>* rstd,  \
                               int64_t rows) {                                                    \
    if (rms)                                                                                      \
      for (int64_t r = 0; r < rows; ++r)                                                          \
        normal_row<true>(x + r * x_row, y + r * y_row, norm, mean, rstd + r);                     \
    else                                                                                          \
      for (int64_t r = 0; r < rows; ++r)                                                          \
        normal_row<false>(x + r * x_row, y + r * y_row, norm, mean + r, rstd + r);                \
  }                                                                                               \
  CLNP_CLONES void slope_rows_of(                                                                 \
      const T* grad, const T* x, T* out, Strides step, const wide_t<T>* mean,                     \
      const wide_t<T>* rstd, const wide_t<T>* weight, int64_t rows, int64_t free, double inverse, \
      bool rms, wide_t<T>* of_weight, wide_t<T>* of_bias) {                                       \
    for (int64_t r = 0; r < rows; ++r) {                                                          \
      const T *g = grad + r * step.grad, *in = x + r * step.x;                                    \
      T* to = out + r * step.out;                                                                 \
      if (rms)                                                                                    \
        slope_row<true>(g, in, to, weight, free, 0, rstd[r], inverse, of_weight, of_bias);        \
      else                                                                                        \
        slope_row<false>(g, in, to, weight, free, mean[r], rstd[r], inverse, of_weight, of_bias); \
    }                                                                                             \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

std::vector<double> joined(const std::optional<Tensor>& active, const std::optional<Tensor>& free,
                           int64_t split, int64_t channels, double value) {
  std::vector<double> all = numbers_or(active, split, value);
  const std::vector<double> rest = numbers_or(free, channels - split, value);
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

// Where the free block begins.
int64_t check_boundaries(const std::vector<int64_t>& ends, int64_t channels) {
  STD_TORCH_CHECK(!ends.empty(), "boundaries: expected at least one end, got none");
  int64_t before = 0;
  for (const int64_t end : ends) {
    STD_TORCH_CHECK(before <= end, "boundaries: expected ends in order, got ", end, " after ",
                    before);
    before = end;
  }
  STD_TORCH_CHECK(before == channels, "boundaries: expected ", channels,
                  " channels of x at the end, got ", before);
  return ends.size() > 1 ? ends[ends.size() - 2] : 0;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Results partial_layer_norm_fwd(const Tensor& x, const std::vector<int64_t>& boundaries,
                               const std::optional<Tensor>& active_weight,
                               const std::optional<Tensor>& free_weight,
                               const std::optional<Tensor>& active_bias,
                               const std::optional<Tensor>& free_bias, double eps, bool rms,
                               bool skip_active, bool activity) {
  check_float("x", x);
  check_matrix("x", x);
  STD_TORCH_CHECK(x.is_cpu(), "x.device: expected cpu; move with .to()");
  const int64_t rows = x.size(0), channels = x.size(1);
  const int64_t split = check_boundaries(boundaries, channels);
  check_vector("active_weight", active_weight, split);
  check_vector("active_bias", active_bias, split);
  check_vector("free_weight", free_weight, channels - split);
  check_vector("free_bias", free_bias, channels - split);
  const std::vector<double> weight = joined(active_weight, free_weight, split, channels, 1);
  const std::vector<double> bias = joined(active_bias, free_bias, split, channels, 0);
  std::vector<Block> blocks;
  int64_t start = 0;
  for (const int64_t end : boundaries) {
    const double size = static_cast<double>(end - start), n = static_cast<double>(end);
    if (start < end) blocks.push_back({start, end, 1 / size, 1 / n, size / n});
    start = end;
  }
  const int64_t skipped = skip_active ? split : 0;
  const ScalarType wide = sum_type(x.scalar_type());
  const Tensor y = torch::stable::new_empty(x, {rows, channels - skipped});
  const Tensor mean = torch::stable::new_empty(x, {rms ? 0 : rows}, wide);
  const Tensor rstd = torch::stable::new_empty(x, {rows}, wide);
  const Tensor from = with_plain_rows(x);
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using W = wide_t<T>;
    const std::vector<W> scale = narrowed<W>(weight), shift = narrowed<W>(bias);
    const Norm<W> norm{blocks.data(), static_cast<int64_t>(blocks.size()),
                       scale.data(),  shift.data(),
                       eps,           skipped};
    const T* in = const_pointer<T>(from);
    T* out = pointer<T>(y);
    W *means = pointer<W>(mean), *factors = pointer<W>(rstd);
    const int64_t in_row = from.stride(0), out_row = channels - skipped;
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(channels, 1), 1);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      normal_rows(in + begin * in_row, out + begin * out_row, in_row, out_row, norm, rms,
                  rms ? nullptr : means + begin, factors + begin, end - begin);
    });
  });
  const Tensor sums =
      activity ? column_sums(y, Term::kAbs, wide) : torch::stable::new_empty(x, {0}, wide);
  return {y, sums, mean, rstd};
}

// Sums over the rows of both vectors' gradients, in an order that depends on the sizes only.
// piece(r, rows, first, second) adds the sums over some rows to what is there.
template <class W, class F>
void sum_rows(int64_t rows, int64_t columns, std::vector<double>& first,
              std::vector<double>& second, const F& piece) {
  const int64_t groups = std::max<int64_t>((rows + kGroup - 1) / kGroup, 1);
  const int64_t each = (groups + kPieces - 1) / kPieces;
  const int64_t pieces = (groups + each - 1) / each;
  std::vector<double> partial(2 * pieces * columns);
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<W> part(2 * columns);
    for (int64_t p = begin; p < end; ++p) {
      double* to = partial.data() + 2 * p * columns;
      for (int64_t g = p * each; g < std::min((p + 1) * each, groups); ++g) {
        std::fill(part.begin(), part.end(), W(0));
        piece(g * kGroup, std::min(rows - g * kGroup, kGroup), part.data(), part.data() + columns);
        for (int64_t c = 0; c < 2 * columns; ++c) to[c] += static_cast<double>(part[c]);
      }
    }
  });
  for (int64_t p = 0; p < pieces; ++p)
    for (int64_t c = 0; c < columns; ++c) {
      first[c] += partial[2 * p * columns + c];
      second[c] += partial[(2 * p + 1) * columns + c];
    }
}

std::tuple<Tensor, Tensor, Tensor> partial_layer_norm_bwd(const Tensor& grad_y, const Tensor& x,
                                                          const Tensor& mean, const Tensor& rstd,
                                                          const std::optional<Tensor>& free_weight,
                                                          bool rms, bool affine) {
  check_float("x", x);
  check_matrix("x", x);
  STD_TORCH_CHECK(x.is_cpu(), "x.device: expected cpu; move with .to()");
  check_matrix("grad_y", grad_y);
  check_like("grad_y", grad_y, x);
  const int64_t rows = x.size(0), channels = x.size(1), free = grad_y.size(1);
  check_size("grad_y", grad_y, 0, rows);
  STD_TORCH_CHECK(free <= channels, "grad_y.shape: expected at most ", channels, " columns, got ",
                  shape_text(grad_y));
  const ScalarType wide = sum_type(x.scalar_type());
  check_vector("rstd", rstd, rows);
  check_vector("mean", mean, rms ? 0 : rows);
  STD_TORCH_CHECK(rstd.scalar_type() == wide && mean.scalar_type() == wide,
                  "mean.dtype, rstd.dtype: expected those of the forward pass");
  check_vector("free_weight", free_weight, free);
  const int64_t active = channels - free;
  const Tensor grad_x = torch::stable::new_empty(x, {rows, channels});
  const Tensor from = with_plain_rows(slice_of(x, active, free)), grads = with_plain_rows(grad_y);
  const Tensor means = torch::stable::contiguous(mean), factors = torch::stable::contiguous(rstd);
  std::vector<double> first(free), second(free);
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using W = wide_t<T>;
    const std::vector<W> weight = narrowed<W>(numbers_or(free_weight, free, 1));
    const T *in = const_pointer<T>(from), *grad = const_pointer<T>(grads);
    T* out = pointer<T>(grad_x);
    const W *m = const_pointer<W>(means), *s = const_pointer<W>(factors);
    const Strides step{grads.stride(0), from.stride(0), channels};
    const double inverse = 1 / static_cast<double>(std::max<int64_t>(channels, 1));
    const auto piece = [&](int64_t r, int64_t count, W* of_weight, W* of_bias) {
      for (int64_t k = r; k < r + count; ++k)
        std::memset(out + k * channels, 0, active * sizeof(T));
      slope_rows_of(grad + r * step.grad, in + r * step.x, out + r * step.out + active, step,
                    rms ? nullptr : m + r, s + r, weight.data(), count, free, inverse, rms,
                    of_weight, of_bias);
    };
    sum_rows<W>(rows, free, first, second, piece);
  });
  if (!affine) first.clear(), second.clear();
  return {grad_x, sums_tensor(x, first, wide), sums_tensor(x, second, wide)};
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) {
  m.impl("partial_layer_norm_fwd", TORCH_BOX(&clnp::partial_layer_norm_fwd));
  m.impl("partial_layer_norm_bwd", TORCH_BOX(&clnp::partial_layer_norm_bwd));
}
