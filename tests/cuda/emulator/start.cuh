// Launch of a kernel on the CPU, in place of csrc/cuda/device/start.cuh.
#pragma once

#include <cuda_runtime.h>

namespace clnp::cuda {

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t,
           const Arguments&... arguments) {
  emulator::run(blocks, threads, [&] { kernel(arguments...); });
}

inline const char* launched() { return ""; }

}  // namespace clnp::cuda
