// Plain data that the operators hand to the kernels. So the kernels need no header of PyTorch,
// which keeps nvcc quick, and the operators none of CUDA.
#pragma once

#include <cstdint>

#include "../step.h"

namespace clnp::cuda {

enum class Type : int32_t { kFloat, kDouble, kBFloat16, kHalf };

// Tensors of one launch; the table travels in the kernel's arguments, which may take 32764 bytes.
constexpr int kTensors = 128;
constexpr int kThreads = 256;
constexpr int kVectors = 4;                                    // of 16 bytes, per thread
constexpr int64_t kChunk = int64_t{kThreads} * kVectors * 16;  // bytes of a tensor for one block

// A number on the host or on the device.
struct Number {
  double value;  // if both pointers are null
  const float* single;
  const double* wide;
};

struct AdamTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  int64_t count;
  float* step;
  Number lr;
  double l1;
};

struct SgdTensor {
  void* param;
  const void* grad;
  void* buffer;  // null without momentum
  int64_t count;
  Number lr;
  double l1;
  bool first;
};

// The tensors of a launch, all of one type; tensor i is the work of blocks start[i] to start[i +
// 1].
template <class T>
struct Table {
  T tensors[kTensors];
  int32_t start[kTensors + 1];
  bool aligned[kTensors];  // all its pointers are multiples of 16 bytes
  int32_t count;
};

struct AdamOptions {
  double beta1, beta2, eps, decay;
  bool maximize;
  const float* grad_scale;  // or null
  const float* found_inf;   // or null
};

struct SgdOptions {
  double momentum, dampening, decay;
  bool nesterov, maximize;
  const float* grad_scale;
  const float* found_inf;
};

// Each returns an empty text or what CUDA says. `numbers` is memory on the device for kTensors
// times AdamNumbers<double>.
const char* launch_adam(Type type, const Table<AdamTensor>& table, const AdamOptions& options,
                        void* numbers, void* stream);
const char* launch_sgd(Type type, const Table<SgdTensor>& table, const SgdOptions& options,
                       void* stream);

// x [P, C, Q] at p * p_stride + c * c_stride + q * q_stride; sums of |x| by stripe: [stripes, C].
struct Planes {
  const void* x;
  void* partial;  // float, double for double
  int64_t P, C, Q, p_stride, c_stride, q_stride;
  int32_t stripes;
};
const char* launch_activity(Type type, const Planes& planes, void* stream);

}  // namespace clnp::cuda
