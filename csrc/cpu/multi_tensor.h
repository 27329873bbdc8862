// Many tensors, cut into chunks, in one parallel loop: shared by the optimizers.
#pragma once

#include "../lists.h"
#include "elements.h"

namespace clnp {

// Elements of one piece of work; a quarter of it costs 5 % of the step.
constexpr int64_t kChunk = 65536;
constexpr int64_t kParallel = 16384;  // elements below which one thread does it all

// A tensor as one run of memory: itself, or a contiguous copy that finish() writes back.
class Flat {
 public:
  Flat(const Tensor& t, bool in_place, bool written)
      : original_(t),
        flat_(in_place ? t : torch::stable::contiguous(t)),
        copied_(written && !in_place && !t.is_contiguous()) {}

  template <class T>
  T* data() const {
    return static_cast<T*>(const_cast<void*>(flat_.const_data_ptr()));
  }

  void finish() {
    if (copied_) torch::stable::copy_(original_, flat_);
  }

 private:
  Tensor original_, flat_;
  bool copied_;
};

// The one element of a tensor as a double.
inline double scalar_of(const char* name, const Tensor& t) {
  check_float(name, t);
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1, name, ": expected one element on the CPU, got ",
                  shape_text(t));
  double value = 0;
  visit(t.scalar_type(), [&](auto* null) {
    value = load(*const_pointer<std::remove_pointer_t<decltype(null)>>(t));
  });
  return value;
}

inline std::vector<double> scalars_of(const char* name, const std::vector<Tensor>& tensors) {
  std::vector<double> values;
  for (const Tensor& t : tensors) values.push_back(scalar_of(name, t));
  return values;
}

inline bool is_set(const std::optional<Tensor>& found_inf) {
  return found_inf && scalar_of("found_inf", *found_inf) != 0;
}

inline double gradient_factor(bool maximize, const std::optional<Tensor>& grad_scale) {
  return gradient_factor(maximize, grad_scale ? scalar_of("grad_scale", *grad_scale) : 1.0);
}

// Call f(tensor, offset, count) for all chunks of all tensors, in parallel unless they are small.
template <class F>
void for_chunks(const std::vector<Tensor>& tensors, const F& f) {
  struct Chunk {
    size_t tensor;
    int64_t offset, count;
  };
  std::vector<Chunk> chunks;
  int64_t elements = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t total = tensors[i].numel();
    elements += total;
    for (int64_t at = 0; at < total; at += kChunk)
      chunks.push_back({i, at, std::min(kChunk, total - at)});
  }
  const int64_t count = static_cast<int64_t>(chunks.size());
  const int64_t grain = elements < kParallel ? std::max<int64_t>(count, 1) : 1;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(chunks[i].tensor, chunks[i].offset, chunks[i].count);
  });
}

}  // namespace clnp
