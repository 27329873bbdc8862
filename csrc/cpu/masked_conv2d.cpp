// masked_conv2d and its gradients: PyTorch's convolutions on slices of channels, joined in one pass
// with the ReLU and the activity. PyTorch copies slices of channels before it convolves them; where
// a convolution is a product of matrices, their columns serve as they are.
#include <array>
#include <optional>
#include <tuple>

#include "channels.h"
#include "products.h"

namespace clnp {
namespace {

using Sizes = std::vector<int64_t>;

struct Geometry {
  const Sizes &stride, padding, dilation;
  bool depthwise;
};

int64_t output_size(const Tensor& x, int64_t d, int64_t kernel, const Geometry& g) {
  const int64_t room = x.size(2 + d) + 2 * g.padding[d] - g.dilation[d] * (kernel - 1) - 1;
  return room < 0 ? 0 : room / g.stride[d] + 1;
}

// to[:, c] = value[c] or 0
void fill_channels(const Tensor& to, const std::optional<Tensor>& value) {
  Tensor target = to;
  if (!value) {
    torch::stable::zero_(target);
    return;
  }
  Tensor source = *value;
  source = torch::stable::unsqueeze(source, 1);
  torch::stable::copy_(target, torch::stable::unsqueeze(source, 2));
}

// The plain convolution, by the call that torch.nn.functional.conv2d makes; none of the sizes is 0.
Tensor convolve(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                const Geometry& g, bool last) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t groups = g.depthwise ? x.size(1) : 1;
  std::array<StableIValue, 9> stack{
      from(dense(x, last)), from(dense(weight, last)), from(bias),
      from(g.stride),       from(g.padding),           from(g.dilation),
      from(false),          from(Sizes{0, 0}),         from(groups)};
  call("aten::convolution", "", stack.data());
  return dense(to<Tensor>(stack[0]), last);
}

// Gradient of the input or of the weight of the plain convolution; no size is 0. Of the tensor that
// it belongs to only the shape is read; the other one is dense.
Tensor convolve_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                         const Geometry& g, bool of_input, bool last) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t groups = g.depthwise ? x.size(1) : 1;
  const std::array<bool, 3> wanted{of_input, !of_input, false};
  std::array<StableIValue, 11> stack{
      from(dense(grad, last)),
      from(x),
      from(weight),
      from(std::optional<Sizes>()),
      from(g.stride),
      from(g.padding),
      from(g.dilation),
      from(false),
      from(Sizes{0, 0}),
      from(groups),
      from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))};
  call("aten::convolution_backward", "", stack.data());
  const std::array<Tensor, 3> results{to<Tensor>(stack[0]), to<Tensor>(stack[1]),
                                      to<Tensor>(stack[2])};
  return dense(results[of_input ? 0 : 1], last);
}

// x[:, :, ::stride, ::stride]: the pixels that a 1 x 1 filter without padding reads.
Tensor seen_by_points(const Tensor& x, const Geometry& g) {
  using torch::stable::detail::from;
  Tensor seen = x;
  for (const int64_t d : {0, 1}) {
    std::array<StableIValue, 5> stack{from(seen), from(2 + d), from(std::optional<int64_t>()),
                                      from(std::optional<int64_t>()), from(g.stride[d])};
    call("aten::slice", "Tensor", stack.data());
    seen = torch::stable::detail::to<Tensor>(stack[0]);
  }
  return seen;
}

// Whether the convolution is a product of the pixels' rows, images being in channels_last.
bool is_product(const Tensor& weight, const Geometry& g) {
  return weight.size(2) == 1 && weight.size(3) == 1 && g.stride == Sizes{1, 1} &&
         g.padding == Sizes{0, 0} && !g.depthwise;
}

// Images in channels_last [B, C, H, W] as [B H W, C]: the same memory.
Tensor pixel_rows(const Tensor& x) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 2> stack{from(x), from(Sizes{0, 2, 3, 1})};
  call("aten::permute", "", stack.data());
  stack = {stack[0], from(Sizes{x.size(0) * x.size(2) * x.size(3), x.size(1)})};
  call("aten::view", "", stack.data());
  return to<Tensor>(stack[0]);
}

// Filters of 1 x 1, [O, I, 1, 1], as [O, I].
Tensor matrix(const Tensor& weight) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 2> stack{from(weight), from(Sizes{weight.size(0), weight.size(1)})};
  call("aten::reshape", "", stack.data());
  return to<Tensor>(stack[0]);
}

void check_geometry(const Tensor& x, int64_t kernel_h, int64_t kernel_w, const Geometry& g) {
  for (const Sizes* pair : {&g.stride, &g.padding, &g.dilation})
    STD_TORCH_CHECK(pair->size() == 2, "stride, padding, dilation: expected two numbers each");
  for (int64_t d : {0, 1}) {
    STD_TORCH_CHECK(g.stride[d] > 0 && g.dilation[d] > 0 && g.padding[d] >= 0,
                    "stride, padding, dilation: expected at least 1, 0, 1");
    const int64_t kernel = d ? kernel_w : kernel_h;
    STD_TORCH_CHECK(kernel > 0, "kernel: expected at least 1 x 1");
    STD_TORCH_CHECK(x.size(2 + d) + 2 * g.padding[d] > g.dilation[d] * (kernel - 1),
                    "x.shape: expected room for the kernel, got ", shape_text(x));
  }
}

void check_free_weight(const Tensor& x, const Tensor& free_weight, const Geometry& g) {
  check_images("x", x);
  check_images("free_weight", free_weight);
  check_like("free_weight", free_weight, x);
  check_geometry(x, free_weight.size(2), free_weight.size(3), g);
  check_size("free_weight", free_weight, 1, g.depthwise ? 1 : x.size(1));
}

void check_weights(const Tensor& x, const Tensor& active_weight, const Tensor& free_weight,
                   const Geometry& g) {
  check_free_weight(x, free_weight, g);
  check_images("active_weight", active_weight);
  check_like("active_weight", active_weight, x);
  for (int64_t d : {2, 3}) check_size("active_weight", active_weight, d, free_weight.size(d));
  if (g.depthwise) {
    check_size("active_weight", active_weight, 1, 1);
    check_size("x", x, 1, active_weight.size(0) + free_weight.size(0));
  } else {
    STD_TORCH_CHECK(active_weight.size(1) <= free_weight.size(1),
                    "active_weight.shape: expected at most ", free_weight.size(1), " inputs, got ",
                    shape_text(active_weight));
  }
}

template <class T>
CLNP_INLINE double open_run(const T* __restrict__ grad, const T* __restrict__ y,
                            T* __restrict__ out, int64_t count) {
  return sum_run(count, [=](int64_t i) __attribute__((always_inline)) {
    const wide_t<T> value = opened<true>(grad + i, y + i);
    store(out + i, value);
    return value;
  });
}

}  // namespace

#define CLNP_FOR(T)                                                                  \
  CLNP_CLONES double open_run_of(const T* grad, const T* y, T* out, int64_t count) { \
    return open_run(grad, y, out, count);                                            \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

// Frozen and free vectors or filters, one after the other.
Tensor stacked(const Tensor& active, const Tensor& free) {
  if (active.size(0) == 0) return free;
  if (free.size(0) == 0) return active;
  Sizes sizes{active.size(0) + free.size(0)};
  for (int64_t d = 1; d < free.dim(); ++d) sizes.push_back(free.size(d));
  Tensor both = torch::stable::new_empty(free, sizes);
  Tensor front = torch::stable::narrow(both, 0, 0, active.size(0));
  Tensor back = torch::stable::narrow(both, 0, active.size(0), free.size(0));
  torch::stable::copy_(front, active);
  torch::stable::copy_(back, free);
  return both;
}

std::tuple<Tensor, Tensor> masked_conv2d_fwd(const Tensor& x, const Tensor& active_weight,
                                             const Tensor& free_weight,
                                             const std::optional<Tensor>& active_bias,
                                             const std::optional<Tensor>& free_bias,
                                             const Sizes& stride, const Sizes& padding,
                                             const Sizes& dilation, bool depthwise,
                                             const std::string& activation, bool activity) {
  const Geometry g{stride, padding, dilation, depthwise};
  check_float("x", x);
  check_weights(x, active_weight, free_weight, g);
  check_bias("active_bias", active_bias, active_weight);
  check_bias("free_bias", free_bias, free_weight);
  STD_TORCH_CHECK(active_bias.has_value() == free_bias.has_value(),
                  "bias: expected both or none, got one");
  check_activation(activation);
  const bool last = is_channels_last(x), relu = activation == "relu";
  const int64_t active_out = active_weight.size(0), free_out = free_weight.size(0);
  const int64_t outputs = active_out + free_out;
  const int64_t height = output_size(x, 0, free_weight.size(2), g);
  const int64_t width = output_size(x, 1, free_weight.size(3), g);
  std::vector<double> sums(outputs);
  std::optional<Tensor> y;
  // The free part's and the frozen part's convolution; where there is only one, its result is y.
  const auto part = [&](const Tensor& from, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t start) {
    const int64_t count = weight.size(0);
    if (x.size(0) == 0 || count == 0) return;
    const bool whole = count == outputs, some = from.size(1) > 0;
    std::optional<Tensor> result;
    if (some) result = convolve(from, weight, bias, g, last);
    if (!y) y = whole && some ? *result : new_images(x, x.size(0), outputs, height, width, last);
    const Tensor to = slice_of(*y, start, count);
    if (!some) fill_channels(to, bias);
    if (whole && some && !relu && !activity) return;
    join_images(some ? *result : to, to, relu, last, activity ? sums.data() + start : nullptr);
  };
  if (last && active_out > 0 && free_out > 0 && x.numel() > 0 && is_product(free_weight, g)) {
    y = new_images(x, x.size(0), outputs, height, width, last);
    const Tensor from = pixel_rows(dense(x, last)), to = pixel_rows(*y);
    linear_out(slice_of(from, 0, active_weight.size(1)), matrix(active_weight), active_bias,
               slice_of(to, 0, active_out));
    linear_out(from, matrix(free_weight), free_bias, slice_of(to, active_out, free_out));
    if (relu || activity) join_images(*y, *y, relu, last, activity ? sums.data() : nullptr);
  } else if (depthwise) {
    std::optional<Tensor> bias;
    if (free_bias) bias = stacked(*active_bias, *free_bias);
    part(x, stacked(active_weight, free_weight), bias, 0);
  } else {
    part(slice_of(x, 0, active_weight.size(1)), active_weight, active_bias, 0);
    part(x, free_weight, free_bias, active_out);
  }
  if (!y) y = new_images(x, x.size(0), outputs, height, width, last);
  if (!activity) sums.clear();
  return {*y, sums_tensor(x, sums, sum_type(x.scalar_type()))};
}

std::tuple<Tensor, Tensor> masked_conv2d_relu_grad(const Tensor& grad_y, const Tensor& y,
                                                   int64_t active, bool bias) {
  check_float("grad_y", grad_y);
  check_images("grad_y", grad_y);
  check_images("y", y);
  check_like("y", y, grad_y);
  for (int64_t d = 0; d < 4; ++d) check_size("y", y, d, grad_y.size(d));
  check_active(active, y);
  const bool last = is_channels_last(y);
  const int64_t batch = y.size(0), channels = y.size(1) - active;
  const int64_t pixels = y.size(2) * y.size(3);
  const Images grad(slice_of(grad_y, active, channels), last);
  const Images output(slice_of(y, active, channels), last);
  const Tensor out = new_images(y, batch, channels, y.size(2), y.size(3), last);
  const Images result(out, last);
  const Layout g = grad.layout, z = output.layout, o = result.layout;
  std::vector<double> sums(channels);
  visit(y.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T *from_g = const_pointer<T>(grad.tensor), *from_y = const_pointer<T>(output.tensor);
    T* to = pointer<T>(out);
    const RowStrides strides{g.pixel, z.pixel, o.pixel};
    sum_channels(
        last, batch, channels, pixels, sums.data(),
        [&](int64_t r, int64_t rows, int64_t c, int64_t columns, double* part) {
          open_rows_of(from_g + r * g.pixel + c, from_y + r * z.pixel + c, to + r * o.pixel + c,
                       strides, rows, columns, part);
        },
        [&](int64_t i, int64_t c) {
          return open_run_of(from_g + i * g.image + c * g.channel,
                             from_y + i * z.image + c * z.channel, to + i * o.image + c * o.channel,
                             pixels);
        });
  });
  if (!bias) sums.clear();
  return {out, sums_tensor(y, sums, y.scalar_type())};
}

Tensor masked_conv2d_dgrad(const Tensor& grad_z, const Tensor& x, const Tensor& free_weight,
                           int64_t active, const Sizes& stride, const Sizes& padding,
                           const Sizes& dilation, bool depthwise) {
  const Geometry g{stride, padding, dilation, depthwise};
  check_float("grad_z", grad_z);
  check_like("grad_z", grad_z, x);
  check_free_weight(x, free_weight, g);
  check_active(active, x);
  const int64_t inputs = x.size(1), free = inputs - active;
  if (depthwise) check_size("free_weight", free_weight, 0, free);
  check_images("grad_z", grad_z);
  check_size("grad_z", grad_z, 0, x.size(0));
  check_size("grad_z", grad_z, 1, free_weight.size(0));
  for (int64_t d : {0, 1})
    check_size("grad_z", grad_z, 2 + d, output_size(x, d, free_weight.size(2 + d), g));
  const bool last = is_channels_last(x);
  const auto empty = [&](int64_t channels) {
    return new_images(grad_z, x.size(0), channels, x.size(2), x.size(3), last);
  };
  const Tensor weight = depthwise ? free_weight : slice_of(free_weight, active, free);
  // Only the shape of the inputs is read, so x can stand for them where all of them are free.
  const auto gradient = [&] {
    if (grad_z.numel() > 0 && free > 0)
      return convolve_backward(grad_z, active ? empty(free) : dense(x, last), dense(weight, last),
                               g, true, last);
    Tensor none = empty(free);
    return torch::stable::zero_(none);
  };
  if (active == 0) return gradient();
  const Tensor grad_x = empty(inputs);
  Tensor front = slice_of(grad_x, 0, active), back = slice_of(grad_x, active, free);
  if (last && free > 0 && grad_z.numel() > 0 && is_product(weight, g))
    mm_out(pixel_rows(dense(grad_z, last)), matrix(weight), pixel_rows(back));
  else if (free > 0)
    torch::stable::copy_(back, gradient());
  torch::stable::zero_(front);
  return grad_x;
}

std::tuple<Tensor, Tensor> masked_conv2d_wgrad(const Tensor& grad_z, const Tensor& x,
                                               const Sizes& kernel, const Sizes& stride,
                                               const Sizes& padding, const Sizes& dilation,
                                               bool depthwise, bool bias) {
  const Geometry g{stride, padding, dilation, depthwise};
  check_float("grad_z", grad_z);
  check_images("grad_z", grad_z);
  check_images("x", x);
  check_like("x", x, grad_z);
  STD_TORCH_CHECK(kernel.size() == 2, "kernel: expected two numbers");
  check_geometry(x, kernel[0], kernel[1], g);
  check_size("grad_z", grad_z, 0, x.size(0));
  for (int64_t d : {0, 1}) check_size("grad_z", grad_z, 2 + d, output_size(x, d, kernel[d], g));
  const int64_t outputs = grad_z.size(1);
  STD_TORCH_CHECK(!depthwise || outputs <= x.size(1), "grad_z.shape: expected at most ", x.size(1),
                  " channels, got ", shape_text(grad_z));
  const bool last = is_channels_last(x);
  const Tensor seen = depthwise ? slice_of(x, x.size(1) - outputs, outputs) : x;
  const int64_t inputs = depthwise ? 1 : x.size(1);
  Tensor weight = new_images(grad_z, outputs, inputs, kernel[0], kernel[1], last);
  const Tensor grad = dense(grad_z, last);
  const bool points = kernel == Sizes{1, 1} && padding == Sizes{0, 0} && !depthwise;
  if (weight.numel() > 0) {
    if (grad_z.numel() > 0 && points && stride != Sizes{1, 1}) {
      // oneDNN (3.x, AVX2) writes behind its buffer in the strided form of this product where there
      // are 2 to 7 inputs in channels_last.
      const Sizes one{1, 1};
      const Tensor some = dense(seen_by_points(seen, g), last);
      weight = convolve_backward(grad, some, weight, Geometry{one, padding, dilation, false}, false,
                                 last);
    } else if (grad_z.numel() > 0)
      weight = convolve_backward(grad, dense(seen, last), weight, g, false, last);
    else
      torch::stable::zero_(weight);
  }
  std::vector<double> sums(bias ? outputs : 0);
  if (bias) sum_images(grad, last, sums.data());
  return {weight, sums_tensor(grad_z, sums, grad_z.scalar_type())};
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) {
  m.impl("masked_conv2d_fwd", TORCH_BOX(&clnp::masked_conv2d_fwd));
  m.impl("masked_conv2d_relu_grad", TORCH_BOX(&clnp::masked_conv2d_relu_grad));
  m.impl("masked_conv2d_dgrad", TORCH_BOX(&clnp::masked_conv2d_dgrad));
  m.impl("masked_conv2d_wgrad", TORCH_BOX(&clnp::masked_conv2d_wgrad));
}
