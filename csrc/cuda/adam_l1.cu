// adam_l1: one launch of a single block that advances the steps, one that does all tensors.
#include <type_traits>

#include "elements.cuh"

namespace clnp::cuda {
namespace {

// The steps and what follows from them, computed once per tensor. A launch of its own, so that no
// block of the next one reads a step that another has already advanced.
template <class W>
__global__ void advance_kernel(const __grid_constant__ Table<AdamTensor> table,
                               const __grid_constant__ AdamOptions options,
                               AdamNumbers<W>* __restrict__ numbers) {
  const int i = threadIdx.x;
  if (i >= table.count || (options.found_inf && *options.found_inf != 0.0f)) return;
  const AdamTensor& tensor = table.tensors[i];
  const float step = *tensor.step + 1.0f;
  *tensor.step = step;
  numbers[i] = adam_numbers(factor_of(options), options.decay, tensor.l1, read(tensor.lr),
                            options.beta1, options.beta2, options.eps, step)
                   .template as<W>();
}

template <class T>
__device__ __forceinline__ void one(T& p, T g, T& m, T& v, const AdamNumbers<wide_t<T>>& n) {
  wide_t<T> w = load(p), first = load(m), second = load(v);
  adam_element(w, wide_t<T>(load(g)), first, second, n);
  store(p, w), store(m, first), store(v, second);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adam_kernel(const __grid_constant__ Table<AdamTensor> table, const float* found_inf,
                const AdamNumbers<wide_t<T>>* __restrict__ numbers) {
  if (found_inf && *found_inf != 0.0f) return;
  const int i = tensor_of(table, blockIdx.x);
  const AdamTensor& tensor = table.tensors[i];
  const AdamNumbers<wide_t<T>> n = numbers[i];
  constexpr int64_t chunk = kChunk / sizeof(T);
  const int64_t begin = (blockIdx.x - table.start[i]) * chunk;
  const int64_t end = min(begin + chunk, tensor.count);
  T* p = static_cast<T*>(tensor.param);
  const T* g = static_cast<const T*>(tensor.grad);
  T* m = static_cast<T*>(tensor.exp_avg);
  T* v = static_cast<T*>(tensor.exp_avg_sq);
  int64_t done = begin;
  if (table.aligned[i]) {
    using V = Vector<T>;
    done = end - (end - begin) % kWidth<T>;
#pragma unroll 2
    for (int64_t at = begin + threadIdx.x * kWidth<T>; at < done; at += kThreads * kWidth<T>) {
      V vp = *reinterpret_cast<const V*>(p + at), vg = *reinterpret_cast<const V*>(g + at);
      V vm = *reinterpret_cast<const V*>(m + at), vv = *reinterpret_cast<const V*>(v + at);
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k)
        one(vp.values[k], vg.values[k], vm.values[k], vv.values[k], n);
      *reinterpret_cast<V*>(p + at) = vp;
      *reinterpret_cast<V*>(m + at) = vm;
      *reinterpret_cast<V*>(v + at) = vv;
    }
  }
#pragma unroll 1
  for (int64_t at = done + threadIdx.x; at < end; at += kThreads)
    one(p[at], g[at], m[at], v[at], n);
}

}  // namespace

const char* launch_adam(Type type, const Table<AdamTensor>& table, const AdamOptions& options,
                        void* numbers, void* stream) {
  return visit(type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const auto computed = static_cast<AdamNumbers<wide_t<T>>*>(numbers);
    const auto on = static_cast<cudaStream_t>(stream);
    start(advance_kernel<wide_t<T>>, 1, kTensors, on, table, options, computed);
    const int blocks = table.start[table.count];
    if (blocks) start(adam_kernel<T>, blocks, kThreads, on, table, options.found_inf, computed);
    return launched();
  });
}

}  // namespace clnp::cuda
