// sgd_l1: one launch for all tensors.
#include <type_traits>

#include "elements.cuh"

namespace clnp::cuda {
namespace {

template <class T>
__device__ __forceinline__ void one(T& p, T g, T& b, const SgdNumbers<wide_t<T>>& n) {
  wide_t<T> w = load(p), buffer = load(b);
  sgd_element(w, wide_t<T>(load(g)), buffer, n);
  store(p, w), store(b, buffer);
}

template <class T>
__device__ __forceinline__ void one(T& p, T g, const SgdNumbers<wide_t<T>>& n) {
  wide_t<T> w = load(p);
  sgd_element(w, wide_t<T>(load(g)), n);
  store(p, w);
}

template <class T, bool kMomentum>
__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ Table<SgdTensor> table,
               const __grid_constant__ SgdOptions options) {
  if (options.found_inf && *options.found_inf != 0.0f) return;
  const int i = tensor_of(table, blockIdx.x);
  const SgdTensor& tensor = table.tensors[i];
  const SgdNumbers<wide_t<T>> n =
      sgd_numbers(factor_of(options), options.decay, tensor.l1, read(tensor.lr), options.momentum,
                  options.dampening, options.nesterov, tensor.first)
          .template as<wide_t<T>>();
  constexpr int64_t chunk = kChunk / sizeof(T);
  const int64_t begin = (blockIdx.x - table.start[i]) * chunk;
  const int64_t end = min(begin + chunk, tensor.count);
  T* p = static_cast<T*>(tensor.param);
  const T* g = static_cast<const T*>(tensor.grad);
  T* b = static_cast<T*>(tensor.buffer);
  int64_t done = begin;
  if (table.aligned[i]) {
    using V = Vector<T>;
    done = end - (end - begin) % kWidth<T>;
#pragma unroll 2
    for (int64_t at = begin + threadIdx.x * kWidth<T>; at < done; at += kThreads * kWidth<T>) {
      V vp = *reinterpret_cast<const V*>(p + at), vg = *reinterpret_cast<const V*>(g + at);
      if constexpr (kMomentum) {
        V vb = *reinterpret_cast<const V*>(b + at);
#pragma unroll
        for (int k = 0; k < kWidth<T>; ++k) one(vp.values[k], vg.values[k], vb.values[k], n);
        *reinterpret_cast<V*>(b + at) = vb;
      } else {
#pragma unroll
        for (int k = 0; k < kWidth<T>; ++k) one(vp.values[k], vg.values[k], n);
      }
      *reinterpret_cast<V*>(p + at) = vp;
    }
  }
#pragma unroll 1
  for (int64_t at = done + threadIdx.x; at < end; at += kThreads) {
    if constexpr (kMomentum)
      one(p[at], g[at], b[at], n);
    else
      one(p[at], g[at], n);
  }
}

}  // namespace

const char* launch_sgd(Type type, const Table<SgdTensor>& table, const SgdOptions& options,
                       void* stream) {
  return visit(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const auto on = static_cast<cudaStream_t>(stream);
    const int blocks = table.start[table.count];
    if (blocks == 0) return "";
    if (options.momentum != 0)
      start(sgd_kernel<T, true>, blocks, kThreads, on, table, options);
    else
      start(sgd_kernel<T, false>, blocks, kThreads, on, table, options);
    return launched();
  });
}

}  // namespace clnp::cuda
