// Element types and compilation for several instruction sets, shared by the CPU operators.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../checks.h"
#include "../step.h"

// One body, compiled for AVX-512, AVX2 and the baseline; the dynamic loader picks one. Without
// -march=native the library runs on every x86-64 machine, and this keeps it fast.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__) && __GNUC__ >= 12
#define CLNP_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLNP_CLONES
#endif
// Bodies must be inlined into the clones, or they stay code for the baseline.
#define CLNP_INLINE inline __attribute__((always_inline))

// M(T) for each element type that an operator takes.
#define CLNP_ELEMENT_TYPES(M) M(float) M(double) M(BFloat16) M(Half)

namespace clnp {

using Half = torch::headeronly::Half;

// bfloat16 as bits: its conversions are integer arithmetic without branches, so loops vectorise.
struct BFloat16 {
  uint16_t bits;
};

CLNP_INLINE float load(float x) { return x; }
CLNP_INLINE double load(double x) { return x; }
CLNP_INLINE float load(Half x) { return static_cast<float>(x); }
CLNP_INLINE float load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

CLNP_INLINE void store(float* at, float x) { *at = x; }
CLNP_INLINE void store(double* at, double x) { *at = x; }
CLNP_INLINE void store(Half* at, float x) { *at = static_cast<Half>(x); }
CLNP_INLINE void store(BFloat16* at, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Round to nearest, ties to even; a NaN stays one instead of rounding up to infinity.
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  at->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Call f with a null pointer of the element type that `type` stands for.
template <class F>
void visit(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<Half*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "dtype: expected float32, bfloat16, float16 or float64");
  }
}

template <class T>
T* pointer(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
const T* const_pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// The dtype of sums over elements of `type`.
inline ScalarType sum_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether the elements of each row are side by side, whatever the distance between rows: a slice of
// columns is such a matrix.
inline bool has_plain_rows(const Tensor& t) { return t.size(1) <= 1 || t.stride(1) == 1; }
inline Tensor with_plain_rows(const Tensor& t) {
  return has_plain_rows(t) ? t : torch::stable::contiguous(t);
}

}  // namespace clnp
