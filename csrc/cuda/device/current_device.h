// The device that the bindings work on: its dispatch key, its tensors, its current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../../cpu/dispatch.h"

#define CLNP_DEVICE_KEY CUDA

namespace clnp::cuda {

using Guard = torch::stable::accelerator::DeviceGuard;

inline bool on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }

inline void* current_stream(const torch::stable::Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return stream;
}

}  // namespace clnp::cuda
