// channel_activity: sums of |x| per channel and stripe, one pass over memory, no atomics.
#include <algorithm>
#include <type_traits>

#include "elements.cuh"

namespace clnp::cuda {
namespace {

// Channels side by side: a thread sums the rows of its stripe for as many channels as it loads at
// once; threadIdx.x goes along the channels, threadIdx.y along the rows.
template <class T, int kAtOnce>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ Planes planes) {
  using W = wide_t<T>;
  struct alignas(sizeof(T) * kAtOnce) Load {
    T values[kAtOnce];
  };
  __shared__ W shared[kThreads][kAtOnce];
  const T* x = static_cast<const T*>(planes.x);
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kAtOnce;
  W sums[kAtOnce] = {};
  if (c < planes.C) {
    const int64_t step = int64_t{planes.stripes} * blockDim.y;
#pragma unroll 4
    for (int64_t r = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < planes.P; r += step) {
      const Load loaded = *reinterpret_cast<const Load*>(x + r * planes.p_stride + c);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) sums[k] += fabs(load(loaded.values[k]));
    }
  }
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) shared[thread][k] = sums[k];
  __syncthreads();
  if (threadIdx.y != 0 || c >= planes.C) return;
  for (int y = 1; y < int(blockDim.y); ++y)
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sums[k] += shared[y * blockDim.x + threadIdx.x][k];
  W* partial = static_cast<W*>(planes.partial) + blockIdx.y * planes.C + c;
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) partial[k] = sums[k];
}

// Pixels side by side, or no order at all: a block sums a stripe of one channel. Index is int32
// where that is enough, because 64-bit divisions are slow.
template <class T, int kAtOnce, class Index>
__global__ void __launch_bounds__(kThreads) planes_kernel(const __grid_constant__ Planes planes) {
  using W = wide_t<T>;
  struct alignas(sizeof(T) * kAtOnce) Load {
    T values[kAtOnce];
  };
  __shared__ W shared[kThreads / 32];
  const T* x = static_cast<const T*>(planes.x) + blockIdx.x * planes.c_stride;
  const Index width = Index(planes.Q / kAtOnce), count = Index(planes.P) * width;
  const Index step = Index(planes.stripes) * kThreads;
  W sum = 0;
#pragma unroll 4
  for (Index i = Index(blockIdx.y) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t p = i / width, q = (i % width) * kAtOnce;
    const Load loaded =
        *reinterpret_cast<const Load*>(x + p * planes.p_stride + q * planes.q_stride);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sum += fabs(load(loaded.values[k]));
  }
#pragma unroll
  for (int lane = 16; lane; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += shared[warp];
  static_cast<W*>(planes.partial)[blockIdx.y * planes.C + blockIdx.x] = sum;
}

// Whether x can be loaded 16 bytes at a time along a dimension of this size, from these strides.
template <class T>
bool aligned(const Planes& planes, int64_t size, int64_t other) {
  const auto address = reinterpret_cast<uintptr_t>(planes.x);
  return address % 16 == 0 && size % kWidth<T> == 0 && other % kWidth<T> == 0;
}

template <class T, int kAtOnce>
void rows(const Planes& planes, cudaStream_t stream) {
  const int64_t across = (planes.C + kAtOnce - 1) / kAtOnce;
  unsigned lanes = 1;
  while (lanes < 32 && lanes < across) lanes *= 2;
  const dim3 threads(lanes, kThreads / lanes);
  const dim3 blocks(unsigned((across + lanes - 1) / lanes), planes.stripes);
  start(rows_kernel<T, kAtOnce>, blocks, threads, stream, planes);
}

template <class T, int kAtOnce>
void pixels(const Planes& planes, cudaStream_t stream) {
  const dim3 blocks(unsigned(planes.C), planes.stripes);
  // the loop's last step may go beyond the count by one step
  const int64_t furthest = planes.P * planes.Q + int64_t{planes.stripes} * kThreads;
  if (furthest < (int64_t{1} << 31))
    start(planes_kernel<T, kAtOnce, int32_t>, blocks, kThreads, stream, planes);
  else
    start(planes_kernel<T, kAtOnce, int64_t>, blocks, kThreads, stream, planes);
}

}  // namespace

const char* launch_activity(Type type, const Planes& planes, void* stream) {
  return visit(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const auto on = static_cast<cudaStream_t>(stream);
    if (planes.c_stride == 1 && planes.Q == 1) {
      if (aligned<T>(planes, planes.C, planes.p_stride))
        rows<T, kWidth<T>>(planes, on);
      else
        rows<T, 1>(planes, on);
    } else if (planes.q_stride == 1 && planes.c_stride % kWidth<T> == 0 &&
               aligned<T>(planes, planes.Q, planes.p_stride)) {
      pixels<T, kWidth<T>>(planes, on);
    } else {
      pixels<T, 1>(planes, on);
    }
    return launched();
  });
}

}  // namespace clnp::cuda
