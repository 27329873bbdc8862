#include "channels.h"

#include <array>
#include <optional>

#include "dispatch.h"

namespace clnp {

bool is_channels_last(const Tensor& x) {
  if (x.stride(1) == 0) return false;
  int64_t smallest = 0;
  for (const int64_t dim : {1, 3, 2, 0}) {
    const int64_t size = x.size(dim), stride = x.stride(dim);
    if (size == 0 || stride < smallest || (dim == 0 && smallest == x.stride(1))) return false;
    smallest = stride * std::max<int64_t>(size, 1);
  }
  return true;
}

Tensor dense(const Tensor& x, bool last) {
  using torch::headeronly::MemoryFormat;
  const Tensor found =
      torch::stable::contiguous(x, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  // One channel or one pixel is dense in both formats, with strides of either. PyTorch chooses the
  // algorithm of a convolution by the strides, so these are made those of the format.
  const std::array<int64_t, 4> order =
      last ? std::array<int64_t, 4>{1, 3, 2, 0} : std::array<int64_t, 4>{3, 2, 1, 0};
  std::array<int64_t, 4> strides;
  int64_t step = 1;
  bool same = true;
  for (const int64_t dim : order) {
    strides[dim] = step;
    same = same && found.stride(dim) == step;
    step *= found.size(dim);
  }
  if (same || step == 0) return found;
  using torch::stable::detail::from;
  const std::vector<int64_t> sizes{found.size(0), found.size(1), found.size(2), found.size(3)};
  std::array<StableIValue, 4> stack{from(found), from(sizes),
                                    from(std::vector<int64_t>(strides.begin(), strides.end())),
                                    from(std::optional<int64_t>())};
  call("aten::as_strided", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor new_images(const Tensor& like, int64_t batch, int64_t channels, int64_t height,
                  int64_t width, bool last) {
  using torch::stable::detail::from;
  const std::vector<int64_t> sizes{batch, channels, height, width};
  if (!last) return torch::stable::new_empty(like, sizes);
  // Not a transposed view: of an operator's output autograd lets only what is no view be changed in
  // place.
  const std::vector<int64_t> strides{height * width * channels, 1, width * channels, channels};
  std::array<StableIValue, 7> stack{from(like),         from(sizes),        from(strides),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt)};
  call("aten::new_empty_strided", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void check_images(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, name, ".shape: expected 4 dimensions, got ", shape_text(t));
}

Images::Images(const Tensor& x, bool last) : tensor(x), layout{last, 0, 0, 0} {
  // Dimensions of size 1 have any stride and say nothing.
  const int64_t height = x.size(2), width = x.size(3), channels = x.size(1), batch = x.size(0);
  const int64_t pixel = width > 1 ? x.stride(3) : x.stride(2);
  const bool one = height * width == 1;
  const bool even = width <= 1 || height <= 1 || x.stride(2) == width * x.stride(3);
  const bool flat = last ? (channels <= 1 || x.stride(1) == 1) : (one || pixel == 1);
  const bool spaced = !last || batch <= 1 || one || x.stride(0) == height * width * pixel;
  if (x.numel() > 0 && !(even && flat && spaced)) {
    tensor = dense(x, last);
    const int64_t plane = height * width;
    layout = last ? Layout{last, plane * channels, 1, channels}
                  : Layout{last, plane * channels, plane, 1};
    return;
  }
  // Rows of one-pixel images are as far from each other as the images.
  layout = {last, x.stride(0), last ? 1 : x.stride(1), last ? (one ? x.stride(0) : pixel) : 1};
}

namespace {

// `from` may be `to`.
template <bool kRelu, class T>
CLNP_INLINE wide_t<T> join(const T* from, T* to) {
  const wide_t<T> value = load(*from);
  const wide_t<T> result = kRelu && value < 0 ? wide_t<T>(0) : value;
  store(to, result);
  return std::fabs(result);
}

// Without `sums` nothing is added up.
template <bool kRelu, class T>
CLNP_INLINE void join_piece(const T* from, int64_t from_row, T* to, int64_t to_row, int64_t rows,
                            int64_t columns, double* sums) {
  if (sums != nullptr) {
    sum_piece<wide_t<T>>(rows, columns, sums,
                         [=](int64_t r, int64_t c) __attribute__((always_inline)) {
                           return join<kRelu>(from + r * from_row + c, to + r * to_row + c);
                         });
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) join<kRelu>(from + r * from_row + c, to + r * to_row + c);
  }
}

template <bool kRelu, class T>
CLNP_INLINE double join_plane(const T* from, T* to, int64_t count) {
  return sum_run(count, [=](int64_t i) __attribute__((always_inline)) {
    return join<kRelu>(from + i, to + i);
  });
}

}  // namespace

#define CLNP_FOR(T)                                                                                \
  CLNP_CLONES void value_rows_of(const T* x, int64_t stride, int64_t rows, int64_t columns,        \
                                 double* sums) {                                                   \
    sum_piece<wide_t<T>>(rows, columns, sums,                                                      \
                         [=](int64_t r, int64_t c)                                                 \
                             __attribute__((always_inline)) { return load(x[r * stride + c]); });  \
  }                                                                                                \
  CLNP_CLONES double value_run_of(const T* x, int64_t count) {                                     \
    return sum_run(count, [=](int64_t i) __attribute__((always_inline)) { return load(x[i]); });   \
  }                                                                                                \
  CLNP_CLONES void join_rows_of(const T* from, int64_t from_row, T* to, int64_t to_row, bool relu, \
                                int64_t rows, int64_t columns, double* sums) {                     \
    if (relu) return join_piece<true>(from, from_row, to, to_row, rows, columns, sums);            \
    join_piece<false>(from, from_row, to, to_row, rows, columns, sums);                            \
  }                                                                                                \
  CLNP_CLONES double join_run_of(const T* from, T* to, bool relu, int64_t count) {                 \
    if (relu) return join_plane<true>(from, to, count);                                            \
    return join_plane<false>(from, to, count);                                                     \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

void sum_images(const Tensor& x, bool last, double* sums) {
  const Images images(x, last);
  const Layout layout = images.layout;
  const int64_t pixels = x.size(2) * x.size(3);
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* data = const_pointer<T>(images.tensor);
    sum_channels(
        last, x.size(0), x.size(1), pixels, sums,
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* part) {
          value_rows_of(data + r * layout.pixel + c, layout.pixel, rows, columns, part);
        },
        [&](int64_t i, int64_t c) {
          return value_run_of(data + i * layout.image + c * layout.channel, pixels);
        });
  });
}

void join_images(const Tensor& from, const Tensor& to, bool relu, bool last, double* sums) {
  const Images source(from, last), target(to, last);
  const Layout s = source.layout, t = target.layout;
  visit(to.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* a = const_pointer<T>(source.tensor);
    T* b = pointer<T>(target.tensor);
    const int64_t pixels = to.size(2) * to.size(3);
    std::vector<double> unused(sums == nullptr ? to.size(1) : 0);
    sum_channels(
        last, to.size(0), to.size(1), pixels, sums == nullptr ? unused.data() : sums,
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* part) {
          join_rows_of(a + r * s.pixel + c, s.pixel, b + r * t.pixel + c, t.pixel, relu, rows,
                       columns, sums == nullptr ? nullptr : part);
        },
        [&](int64_t i, int64_t c) {
          return join_run_of(a + i * s.image + c * s.channel, b + i * t.image + c * t.channel, relu,
                             pixels);
        });
  });
}

}  // namespace clnp
