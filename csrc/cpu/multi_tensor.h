// What the optimizers share: many tensors, cut into chunks, in one parallel loop.
#pragma once

#include <optional>
#include <vector>

#include "elements.h"

namespace clnp {

// Elements of one piece of work; a quarter of it costs 5 % of the step.
constexpr int64_t kChunk = 65536;
constexpr int64_t kParallel = 16384;  // elements below which one thread does it all

// Whether the elements fill one run of memory, in whatever order of dimensions.
inline bool is_dense(const Tensor& t) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) order.push_back(d);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return t.stride(a) < t.stride(b); });
  int64_t expected = 1;
  for (int64_t d : order) {
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Whether the tensors of one parameter lie alike, without gaps (channels_last, say): then elements
// that belong together are at the same place of each run of memory.
inline bool lie_alike(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  return is_dense(first) && std::all_of(tensors.begin(), tensors.end(),
                                        [&](const Tensor* t) { return same_strides(*t, first); });
}

// A tensor as one run of memory: itself, if it may be taken as it lies, or a contiguous copy that
// finish() writes back.
class Flat {
 public:
  Flat(const Tensor& t, bool as_it_lies, bool written)
      : original_(t),
        flat_(as_it_lies ? t : torch::stable::contiguous(t)),
        copied_(written && !as_it_lies && !t.is_contiguous()) {}

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
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1, name, ": wanted one element on the CPU, got ",
                  shape_text(t));
  double value = 0;
  visit(t.scalar_type(), [&](auto* null) {
    value = load(*const_pointer<std::remove_pointer_t<decltype(null)>>(t));
  });
  return value;
}

inline bool is_set(const std::optional<Tensor>& found_inf) {
  return found_inf && scalar_of("found_inf", *found_inf) != 0;
}

// Factor on the gradients: the sign of the ascent and the scale of torch.amp.GradScaler.
inline double gradient_factor(bool maximize, const std::optional<Tensor>& grad_scale) {
  const double scale = grad_scale ? scalar_of("grad_scale", *grad_scale) : 1.0;
  return (maximize ? -1.0 : 1.0) / scale;
}

// Raise unless `tensors` fit the parameters one by one.
inline void check_list(const char* name, const std::vector<Tensor>& tensors,
                       const std::vector<Tensor>& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), name, ": got ", tensors.size(),
                  " tensors, wanted ", params.size(), ", as many as params");
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_float(name, tensors[i]);
    check_like(name, tensors[i], params[i]);
    STD_TORCH_CHECK(same_shape(tensors[i], params[i]), name, "[", i, "].shape: got ",
                    shape_text(tensors[i]), ", wanted ", shape_text(params[i]));
  }
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
