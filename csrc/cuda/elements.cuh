// Element types, loads of 16 bytes and small functions that the kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <start.cuh>

#include "launch.h"

namespace clnp::cuda {

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }

__device__ __forceinline__ void store(float& at, float x) { at = x; }
__device__ __forceinline__ void store(double& at, double x) { at = x; }
__device__ __forceinline__ void store(__nv_bfloat16& at, float x) { at = __float2bfloat16_rn(x); }
__device__ __forceinline__ void store(__half& at, float x) { at = __float2half_rn(x); }

// Elements that are loaded at once.
template <class T>
constexpr int kWidth = 16 / sizeof(T);

template <class T>
struct alignas(16) Vector {
  T values[kWidth<T>];
};

__device__ __forceinline__ double read(const Number& n) {
  return n.single ? double(*n.single) : n.wide ? *n.wide : n.value;
}

// The factor on the gradients, from the options of an optimizer.
template <class Options>
__device__ __forceinline__ double factor_of(const Options& o) {
  return gradient_factor(o.maximize, o.grad_scale ? double(*o.grad_scale) : 1.0);
}

// The tensor that a block works on: the last one that starts at or before it.
template <class T>
__device__ __forceinline__ int tensor_of(const Table<T>& table, int block) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.start[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Call f with a null pointer of the element type that `type` stands for.
template <class F>
const char* visit(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(static_cast<float*>(nullptr));
    case Type::kDouble:
      return f(static_cast<double*>(nullptr));
    case Type::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case Type::kHalf:
      return f(static_cast<__half*>(nullptr));
  }
  return "unknown type";
}

}  // namespace clnp::cuda
