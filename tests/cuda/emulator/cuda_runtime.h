// Enough of CUDA to run kernels on a CPU: the threads of a block take turns, blocks follow each
// other. Only what csrc/cuda uses.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;
using std::fabs;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 16;

// A thread of a block: a context of its own, entered in turn with the others. Where it has to wait
// for others it lets all of them run up to their next such place, so all threads of a block must
// pass the same ones.
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done;
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<double> values;  // what the threads give each other
inline int current;
inline std::function<void()> body;

inline void enter() {
  body();
  threads[current].done = true;
}

inline void wait() { swapcontext(&threads[current].context, &scheduler); }

inline void run_block(int count, dim3 size) {
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &scheduler;
    thread.done = false;
    makecontext(&thread.context, enter, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (int i = 0; i < count; ++i) {
      if (threads[i].done) continue;
      current = i;
      threadIdx = dim3(i % size.x, i / size.x);
      swapcontext(&scheduler, &threads[i].context);
      left = left || !threads[i].done;
    }
  }
}

template <class F>
void run(dim3 blocks, dim3 size, const F& kernel) {
  const int count = size.x * size.y * size.z;
  if (threads.size() < size_t(count)) threads.resize(count), values.resize(count);
  body = kernel;
  blockDim = size;
  for (unsigned y = 0; y < blocks.y; ++y)
    for (unsigned x = 0; x < blocks.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(count, size);
    }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(); }

template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int own = emulator::current, lane = own % emulator::kWarp;
  emulator::values[own] = value;
  emulator::wait();
  const int from = lane + delta < emulator::kWarp ? own + delta : own;
  const T result = static_cast<T>(emulator::values[from]);
  emulator::wait();
  return result;
}
