// partial_batch_norm and its gradients: one pass for the statistics, one that normalises, with the
// ReLU and the activity; backward likewise. Numbers per channel are computed in float64.
#include <cmath>
#include <optional>
#include <tuple>

#include "channels.h"
#include "vectors.h"

namespace clnp {
namespace {

// Distances between the rows of grad, y, x and the result.
struct Rows {
  int64_t grad, y, x, out;
};

// x - shift and its square
template <class T>
CLNP_INLINE Two<wide_t<T>> deviation(const T* x, wide_t<T> shift) {
  const wide_t<T> d = load(*x) - shift;
  return {d, d * d};
}

// The gradient before the ReLU, and it times the distance from the mean.
template <bool kRelu, class T>
CLNP_INLINE Two<wide_t<T>> moments(const T* grad, const T* y, const T* x, wide_t<T> mean) {
  const wide_t<T> g = opened<kRelu>(grad, y);
  return {g, g * (load(*x) - mean)};
}

template <bool kRelu, class T>
CLNP_INLINE wide_t<T> normal(const T* x, T* y, wide_t<T> scale, wide_t<T> offset) {
  const wide_t<T> value = load(*x) * scale + offset;
  store(y, kRelu && value < 0 ? wide_t<T>(0) : value);
  return std::fabs(load(*y));
}

// Numbers of the channels for the gradient of x: grad * scale + (x - mean) * slope + offset, of
// which batch statistics bring the last two terms.
template <class W>
struct Slopes {
  const W *scale, *mean, *slope, *offset;
};

template <bool kRelu, bool kBatch, class T>
CLNP_INLINE void slope(const T* grad, const T* y, const T* x, T* out, Slopes<wide_t<T>> s,
                       int64_t c) {
  wide_t<T> value = opened<kRelu>(grad, y) * s.scale[c];
  if constexpr (kBatch) value += (load(*x) - s.mean[c]) * s.slope[c] + s.offset[c];
  store(out, value);
}

// Bodies of the clones below, for each case known when they are compiled.
template <bool kRelu, class T>
CLNP_INLINE void moments_piece(const T* grad, const T* y, const T* x, Rows row,
                               const wide_t<T>* mean, int64_t rows, int64_t columns, double* first,
                               double* second) {
  sum_two_piece<wide_t<T>>(rows, columns, first, second,
                           [=](int64_t r, int64_t c) __attribute__((always_inline)) {
                             return moments<kRelu>(grad + r * row.grad + c, y + r * row.y + c,
                                                   x + r * row.x + c, mean[c]);
                           });
}

template <bool kRelu, class T>
CLNP_INLINE Two<double> moments_plane(const T* grad, const T* y, const T* x, wide_t<T> mean,
                                      int64_t count) {
  return sum_two_run<wide_t<T>>(count, [=](int64_t i) __attribute__((always_inline)) {
    return moments<kRelu>(grad + i, y + i, x + i, mean);
  });
}

template <bool kRelu, class T>
CLNP_INLINE void normal_piece(const T* x, T* y, Rows row, const wide_t<T>* scale,
                              const wide_t<T>* offset, int64_t rows, int64_t columns,
                              double* sums) {
  if (sums != nullptr) {
    sum_piece<wide_t<T>>(
        rows, columns, sums, [=](int64_t r, int64_t c) __attribute__((always_inline)) {
          return normal<kRelu>(x + r * row.x + c, y + r * row.y + c, scale[c], offset[c]);
        });
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c)
      normal<kRelu>(x + r * row.x + c, y + r * row.y + c, scale[c], offset[c]);
  }
}

template <bool kRelu, class T>
CLNP_INLINE double normal_plane(const T* x, T* y, wide_t<T> scale, wide_t<T> offset,
                                int64_t count) {
  return sum_run(count, [=](int64_t i) __attribute__((always_inline)) {
    return normal<kRelu>(x + i, y + i, scale, offset);
  });
}

template <bool kRelu, bool kBatch, class T>
CLNP_INLINE void slope_piece(const T* grad, const T* y, const T* x, T* out, Rows row,
                             Slopes<wide_t<T>> s, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c)
      slope<kRelu, kBatch>(grad + r * row.grad + c, y + r * row.y + c, x + r * row.x + c,
                           out + r * row.out + c, s, c);
  }
}

template <bool kRelu, bool kBatch, class T>
CLNP_INLINE void slope_plane(const T* grad, const T* y, const T* x, T* out, Slopes<wide_t<T>> s,
                             int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) slope<kRelu, kBatch>(grad + i, y + i, x + i, out + i, s, 0);
}

}  // namespace

#define CLNP_INLINE_LAMBDA __attribute__((always_inline))
#define CLNP_FOR(T)                                                                               \
  CLNP_CLONES void statistics_rows(const T* x, int64_t row, const wide_t<T>* shift, int64_t rows, \
                                   int64_t columns, double* first, double* second) {              \
    sum_two_piece<wide_t<T>>(rows, columns, first, second,                                        \
                             [=](int64_t r, int64_t c) CLNP_INLINE_LAMBDA {                       \
                               return deviation(x + r * row + c, shift[c]);                       \
                             });                                                                  \
  }                                                                                               \
  CLNP_CLONES Two<double> statistics_run(const T* x, wide_t<T> shift, int64_t count) {            \
    return sum_two_run<wide_t<T>>(                                                                \
        count, [=](int64_t i) CLNP_INLINE_LAMBDA { return deviation(x + i, shift); });            \
  }                                                                                               \
  CLNP_CLONES void moments_rows(const T* grad, const T* y, const T* x, Rows row,                  \
                                const wide_t<T>* mean, bool relu, int64_t rows, int64_t columns,  \
                                double* first, double* second) {                                  \
    if (relu) return moments_piece<true>(grad, y, x, row, mean, rows, columns, first, second);    \
    moments_piece<false>(grad, y, x, row, mean, rows, columns, first, second);                    \
  }                                                                                               \
  CLNP_CLONES Two<double> moments_run(const T* grad, const T* y, const T* x, wide_t<T> mean,      \
                                      bool relu, int64_t count) {                                 \
    if (relu) return moments_plane<true>(grad, y, x, mean, count);                                \
    return moments_plane<false>(grad, y, x, mean, count);                                         \
  }                                                                                               \
  CLNP_CLONES void normal_rows(const T* x, T* y, Rows row, const wide_t<T>* scale,                \
                               const wide_t<T>* offset, bool relu, int64_t rows, int64_t columns, \
                               double* sums) {                                                    \
    if (relu) return normal_piece<true>(x, y, row, scale, offset, rows, columns, sums);           \
    normal_piece<false>(x, y, row, scale, offset, rows, columns, sums);                           \
  }                                                                                               \
  CLNP_CLONES double normal_run(const T* x, T* y, wide_t<T> scale, wide_t<T> offset, bool relu,   \
                                int64_t count) {                                                  \
    if (relu) return normal_plane<true>(x, y, scale, offset, count);                              \
    return normal_plane<false>(x, y, scale, offset, count);                                       \
  }                                                                                               \
  CLNP_CLONES void slope_rows(const T* grad, const T* y, const T* x, T* out, Rows row,            \
                              Slopes<wide_t<T>> s, bool relu, bool batch, int64_t rows,           \
                              int64_t columns) {                                                  \
    if (relu && batch) return slope_piece<true, true>(grad, y, x, out, row, s, rows, columns);    \
    if (relu) return slope_piece<true, false>(grad, y, x, out, row, s, rows, columns);            \
    if (batch) return slope_piece<false, true>(grad, y, x, out, row, s, rows, columns);           \
    slope_piece<false, false>(grad, y, x, out, row, s, rows, columns);                            \
  }                                                                                               \
  CLNP_CLONES void slope_run(const T* grad, const T* y, const T* x, T* out, Slopes<wide_t<T>> s,  \
                             bool relu, bool batch, int64_t count) {                              \
    if (relu && batch) return slope_plane<true, true>(grad, y, x, out, s, count);                 \
    if (relu) return slope_plane<true, false>(grad, y, x, out, s, count);                         \
    if (batch) return slope_plane<false, true>(grad, y, x, out, s, count);                        \
    slope_plane<false, false>(grad, y, x, out, s, count);                                         \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

// Mean and variance of the batch, of all channels of x.
void statistics(const Tensor& x, bool last, std::vector<double>& mean, std::vector<double>& var) {
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  const double count = static_cast<double>(batch * pixels);
  std::vector<double> first(channels), second(channels);
  mean.assign(channels, 0), var.assign(channels, 0);
  if (x.numel() == 0) return;
  const Images images(x, last);
  const Layout layout = images.layout;
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* data = const_pointer<T>(images.tensor);
    // Distances from some value of the channel: squares of far values would cancel.
    std::vector<wide_t<T>> shift(channels);
    for (int64_t c = 0; c < channels; ++c) shift[c] = load(data[c * layout.channel]);
    sum_two(
        last, batch, channels, pixels, first.data(), second.data(),
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* a, double* b) {
          statistics_rows(data + r * layout.pixel + c, layout.pixel, shift.data() + c, rows,
                          columns, a, b);
        },
        [&](int64_t i, int64_t c) {
          return statistics_run(data + i * layout.image + c * layout.channel, shift[c], pixels);
        });
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = first[c] / count;
      mean[c] = static_cast<double>(shift[c]) + distance;
      var[c] = second[c] / count - distance * distance;
      if (var[c] < 0) var[c] = 0;
    }
  });
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Results partial_batch_norm_fwd(const Tensor& x, const Tensor& active_mean, const Tensor& active_var,
                               const Tensor& free_mean, const Tensor& free_var,
                               const std::optional<Tensor>& active_weight,
                               const std::optional<Tensor>& free_weight,
                               const std::optional<Tensor>& active_bias,
                               const std::optional<Tensor>& free_bias, bool training, double eps,
                               const std::string& activation, bool activity) {
  check_float("x", x);
  check_images("x", x);
  const int64_t active = active_mean.numel(), free = free_mean.numel(), channels = x.size(1);
  check_vector("active_mean", active_mean, active);
  check_vector("active_var", active_var, active);
  check_vector("active_weight", active_weight, active);
  check_vector("active_bias", active_bias, active);
  check_vector("free_mean", free_mean, free);
  check_vector("free_var", free_var, free);
  check_vector("free_weight", free_weight, free);
  check_vector("free_bias", free_bias, free);
  check_size("x", x, 1, active + free);
  const bool last = is_channels_last(x), relu = activation == "relu";
  const ScalarType wide = sum_type(x.scalar_type());
  std::vector<double> batch_mean, batch_var;
  if (training) statistics(slice_of(x, active, free), last, batch_mean, batch_var);
  std::vector<double> scale(channels), offset(channels), sums(channels);
  const auto set = [&](int64_t start, const std::vector<double>& mean,
                       const std::vector<double>& var, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& bias) {
    const int64_t count = static_cast<int64_t>(mean.size());
    const std::vector<double> w = numbers_or(weight, count, 1), b = numbers_or(bias, count, 0);
    for (int64_t c = 0; c < count; ++c) {
      scale[start + c] = w[c] / std::sqrt(var[c] + eps);
      offset[start + c] = b[c] - mean[c] * scale[start + c];
    }
  };
  set(0, numbers(active_mean), numbers(active_var), active_weight, active_bias);
  if (training)
    set(active, batch_mean, batch_var, free_weight, free_bias);
  else
    set(active, numbers(free_mean), numbers(free_var), free_weight, free_bias);
  const Tensor y = new_images(x, x.size(0), channels, x.size(2), x.size(3), last);
  const Images from(x, last), to(y, last);
  const Layout s = from.layout, t = to.layout;
  const int64_t pixels = x.size(2) * x.size(3);
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using W = wide_t<T>;
    const std::vector<W> a = narrowed<W>(scale), b = narrowed<W>(offset);
    const T* in = const_pointer<T>(from.tensor);
    T* out = pointer<T>(to.tensor);
    const Rows row{0, t.pixel, s.pixel, 0};
    sum_channels(
        last, x.size(0), channels, pixels, sums.data(),
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* part) {
          normal_rows(in + r * s.pixel + c, out + r * t.pixel + c, row, a.data() + c, b.data() + c,
                      relu, rows, columns, activity ? part : nullptr);
        },
        [&](int64_t i, int64_t c) {
          return normal_run(in + i * s.image + c * s.channel, out + i * t.image + c * t.channel,
                            a[c], b[c], relu, pixels);
        });
  });
  if (!activity) sums.clear();
  return {y, sums_tensor(x, sums, wide), sums_tensor(x, batch_mean, wide),
          sums_tensor(x, batch_var, wide)};
}

// The gradients before the ReLU, the input and what they need of the output, of some channels.
struct Given {
  Images grad, y, x;
  bool last, relu;
};

// first[c] = sum of the gradient, second[c] = sum of it times (x - mean).
void gradient_sums(const Given& g, const std::vector<double>& mean, double* first, double* second) {
  const Tensor& x = g.x.tensor;
  const int64_t pixels = x.size(2) * x.size(3);
  const Layout lg = g.grad.layout, ly = g.y.layout, lx = g.x.layout;
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const std::vector<wide_t<T>> m = narrowed<wide_t<T>>(mean);
    const T *grad = const_pointer<T>(g.grad.tensor), *y = const_pointer<T>(g.y.tensor);
    const T* in = const_pointer<T>(x);
    const Rows row{lg.pixel, ly.pixel, lx.pixel, 0};
    sum_two(
        g.last, x.size(0), x.size(1), pixels, first, second,
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* a, double* b) {
          moments_rows(grad + r * lg.pixel + c, y + r * ly.pixel + c, in + r * lx.pixel + c, row,
                       m.data() + c, g.relu, rows, columns, a, b);
        },
        [&](int64_t i, int64_t c) {
          return moments_run(grad + i * lg.image + c * lg.channel,
                             y + i * ly.image + c * ly.channel, in + i * lx.image + c * lx.channel,
                             m[c], g.relu, pixels);
        });
  });
}

// out = grad * scale, with batch statistics + (x - mean) * slope + offset
void input_gradient(const Given& g, const Images& out, bool batch, const std::vector<double>& scale,
                    const std::vector<double>& mean, const std::vector<double>& slopes,
                    const std::vector<double>& offset) {
  const Tensor& x = g.x.tensor;
  const int64_t pixels = x.size(2) * x.size(3), images = x.size(0), channels = x.size(1);
  const Layout lg = g.grad.layout, ly = g.y.layout, lx = g.x.layout, lo = out.layout;
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using W = wide_t<T>;
    const std::vector<W> a = narrowed<W>(scale), m = narrowed<W>(mean);
    const std::vector<W> q = narrowed<W>(slopes), o = narrowed<W>(offset);
    const T *grad = const_pointer<T>(g.grad.tensor), *y = const_pointer<T>(g.y.tensor);
    const T* in = const_pointer<T>(x);
    T* to = pointer<T>(out.tensor);
    const Rows row{lg.pixel, ly.pixel, lx.pixel, lo.pixel};
    const auto part = [&](int64_t c) {
      return Slopes<W>{a.data() + c, m.data() + c, q.data() + c, o.data() + c};
    };
    if (g.last) {
      const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(channels, 1), 1);
      torch::stable::parallel_for(0, images * pixels, grain, [&](int64_t r, int64_t end) {
        slope_rows(grad + r * lg.pixel, y + r * ly.pixel, in + r * lx.pixel, to + r * lo.pixel, row,
                   part(0), g.relu, batch, end - r, channels);
      });
      return;
    }
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(pixels, 1), 1);
    torch::stable::parallel_for(0, images * channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = k / channels, c = k % channels;
        slope_run(grad + i * lg.image + c * lg.channel, y + i * ly.image + c * ly.channel,
                  in + i * lx.image + c * lx.channel, to + i * lo.image + c * lo.channel, part(c),
                  g.relu, batch, pixels);
      }
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> partial_batch_norm_bwd(
    const Tensor& grad_y, const Tensor& x, const std::optional<Tensor>& y, const Tensor& free_mean,
    const Tensor& free_var, const std::optional<Tensor>& free_weight, bool training, double eps) {
  check_float("x", x);
  check_images("x", x);
  const int64_t free = free_mean.numel(), active = x.size(1) - free;
  STD_TORCH_CHECK(active >= 0, "x.shape: expected at least ", free, " channels, got ",
                  shape_text(x));
  check_images("grad_y", grad_y);
  check_like("grad_y", grad_y, x);
  for (int64_t d = 0; d < 4; ++d) check_size("grad_y", grad_y, d, x.size(d));
  if (y) check_images("y", *y), check_like("y", *y, x);
  for (int64_t d = 0; y && d < 4; ++d) check_size("y", *y, d, x.size(d));
  check_vector("free_mean", free_mean, free);
  check_vector("free_var", free_var, free);
  check_vector("free_weight", free_weight, free);
  const bool last = is_channels_last(x);
  const Tensor grad_x = new_images(x, x.size(0), x.size(1), x.size(2), x.size(3), last);
  const Tensor part = slice_of(x, active, free);
  const Given given{Images(slice_of(grad_y, active, free), last),
                    Images(y ? slice_of(*y, active, free) : part, last), Images(part, last), last,
                    y.has_value()};
  std::vector<double> first(free), second(free), slopes(free), offset(free);
  const std::vector<double> mean = numbers(free_mean), var = numbers(free_var);
  gradient_sums(given, mean, first.data(), second.data());
  std::vector<double> scale = numbers_or(free_weight, free, 1);
  const double count = static_cast<double>(x.size(0) * x.size(2) * x.size(3));
  for (int64_t c = 0; c < free; ++c) {
    const double invstd = 1 / std::sqrt(var[c] + eps);
    scale[c] *= invstd;
    slopes[c] = -scale[c] * invstd * invstd * second[c] / count;
    offset[c] = -scale[c] * first[c] / count;
    second[c] *= invstd;
  }
  input_gradient(given, Images(slice_of(grad_x, active, free), last), training, scale, mean, slopes,
                 offset);
  if (active > 0) {
    Tensor front = slice_of(grad_x, 0, active);
    torch::stable::zero_(front);
  }
  const ScalarType wide = sum_type(x.scalar_type());
  return {grad_x, sums_tensor(x, second, wide), sums_tensor(x, first, wide)};
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) {
  m.impl("partial_batch_norm_fwd", TORCH_BOX(&clnp::partial_batch_norm_fwd));
  m.impl("partial_batch_norm_bwd", TORCH_BOX(&clnp::partial_batch_norm_bwd));
}
