// The operator channel_activity on CUDA; the kernels are in channel_activity.cu.
#include "tensors.h"

namespace clnp::cuda {
namespace {

// Elements that a stripe has at least, and the most blocks of one launch: a few per multiprocessor.
constexpr int64_t kStripe = 16384;
constexpr int64_t kBlocks = 2048;

// Sums of |x| by stripe, [stripes, C] float32 (float64 for float64), of x [P, C, Q] with elements.
Tensor channel_activity(const Tensor& x) {
  check_float("x", x);
  STD_TORCH_CHECK(x.dim() == 3 && x.numel() > 0 && on_device(x),
                  "x: expected [P, C, Q] with elements on the device, got ", shape_text(x));
  const Guard guard(x.get_device());
  const Type type = type_of(x);
  Planes planes{x.const_data_ptr(), nullptr,     x.size(0),   x.size(1), x.size(2),
                x.stride(0),        x.stride(1), x.stride(2), 1};
  const bool rows = planes.c_stride == 1 && planes.Q == 1;
  const int64_t count = planes.P * planes.Q;
  // of all channels of a block: 32 lanes of 16 bytes, or one
  const int64_t together = rows ? std::min(planes.C, 512 / bytes_of(type)) : 1;
  const int64_t wanted = (count * together + kStripe - 1) / kStripe;
  const int64_t others = (planes.C + together - 1) / together;
  planes.stripes = static_cast<int32_t>(
      std::max<int64_t>(1, std::min(wanted, std::max<int64_t>(1, kBlocks / others))));
  const ScalarType sums = type == Type::kDouble ? ScalarType::Double : ScalarType::Float;
  const Tensor partial = torch::stable::new_empty(x, {planes.stripes, planes.C}, sums);
  planes.partial = const_cast<void*>(partial.const_data_ptr());
  check_text(launch_activity(type, planes, current_stream(x)));
  return partial;
}

}  // namespace
}  // namespace clnp::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(clnp_kernels_cuda, m) {
  m.def("channel_activity(Tensor x) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(clnp_kernels_cuda, CLNP_DEVICE_KEY, m) {
  m.impl("channel_activity", TORCH_BOX(&clnp::cuda::channel_activity));
}
