// Launch of a kernel. In a folder of its own, as `current_device.h`: the tests put theirs in its
// place and run the kernels on a CPU.
#pragma once

#include <cuda_runtime.h>

namespace clnp::cuda {

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream,
           const Arguments&... arguments) {
  kernel<<<blocks, threads, 0, stream>>>(arguments...);
}

inline const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace clnp::cuda
