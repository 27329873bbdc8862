// What the bindings share: tensors as runs of memory, numbers on the host or on the device.
#pragma once

#include <here.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "launch.h"

namespace clnp::cuda {

inline void check_text(const char* error) { STD_TORCH_CHECK(*error == '\0', "CUDA: ", error); }

inline Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Half:
      return Type::kHalf;
    default:
      return Type::kFloat;
  }
}

inline int64_t bytes_of(Type type) {
  return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2;
}

// Raise unless `tensors` fit the parameters one by one and lie on the device of the first.
inline void check_list(const char* name, const std::vector<Tensor>& tensors,
                       const std::vector<Tensor>& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), name, ": got ", tensors.size(),
                  " tensors, wanted ", params.size(), ", as many as params");
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_float(name, tensors[i]);
    STD_TORCH_CHECK(tensors[i].scalar_type() == params[i].scalar_type(), name,
                    ".dtype: wanted that of params; convert with .to()");
    STD_TORCH_CHECK(is_here(tensors[i]) && tensors[i].get_device() == params[0].get_device(), name,
                    ".device: wanted one device for all; move with .to()");
    STD_TORCH_CHECK(same_shape(tensors[i], params[i]), name, "[", i, "].shape: got ",
                    shape_text(tensors[i]), ", wanted ", shape_text(params[i]));
  }
}

// Whether the elements fill a run of memory, in whatever order of the dimensions.
inline bool is_dense(const Tensor& t) {
  std::vector<int64_t> order(t.dim());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return t.stride(a) < t.stride(b); });
  int64_t expected = 1;
  for (const int64_t d : order) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline bool lie_alike(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Tensors of one shape whose elements lie in the same order: themselves, if they are dense and lie
// alike, else contiguous copies; finish() writes those back.
class Runs {
 public:
  explicit Runs(std::vector<Tensor> tensors) : originals_(std::move(tensors)), runs_(originals_) {
    bool plain = true;
    for (const Tensor& t : originals_) plain = plain && is_dense(t) && lie_alike(t, originals_[0]);
    if (plain) return;
    for (Tensor& t : runs_) t = torch::stable::contiguous(t);
  }

  void* data(size_t i) const { return const_cast<void*>(runs_[i].const_data_ptr()); }

  bool aligned() const {
    for (size_t i = 0; i < runs_.size(); ++i)
      if (reinterpret_cast<uintptr_t>(data(i)) % 16 != 0) return false;
    return true;
  }

  void finish(size_t i) {
    if (runs_[i].const_data_ptr() != originals_[i].const_data_ptr())
      torch::stable::copy_(originals_[i], runs_[i]);
  }

 private:
  std::vector<Tensor> originals_, runs_;
};

// One element, on the host (read now) or on the device (read by the kernel).
inline Number number_of(const char* name, const Tensor& t) {
  const bool single = t.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(t.numel() == 1 && (single || t.scalar_type() == ScalarType::Double), name,
                  ": wanted one element of float32 or float64, got ", shape_text(t));
  Number number{};
  const void* data = t.const_data_ptr();
  if (t.is_cpu())
    number.value = single ? *static_cast<const float*>(data) : *static_cast<const double*>(data);
  else if (single)
    number.single = static_cast<const float*>(data);
  else
    number.wide = static_cast<const double*>(data);
  return number;
}

// A number of torch.amp.GradScaler, or null.
inline const float* flag_of(const char* name, const std::optional<Tensor>& t) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(is_here(*t) && t->numel() == 1 && t->scalar_type() == ScalarType::Float, name,
                  ": wanted one element of float32 on the device, got ", shape_text(*t));
  return static_cast<const float*>(t->const_data_ptr());
}

// Launch in tables of at most kTensors tensors of one type: fill(i) gives the table's entry of
// tensor i, go(type, table) launches.
template <class Entry, class Fill, class Go>
void for_tables(const std::vector<Tensor>& params, const std::vector<Runs>& runs, const Fill& fill,
                const Go& go) {
  for (const Type type : {Type::kFloat, Type::kDouble, Type::kBFloat16, Type::kHalf}) {
    auto table = std::make_unique<Table<Entry>>();
    std::memset(static_cast<void*>(table.get()), 0, sizeof *table);
    for (size_t i = 0; i < params.size(); ++i) {
      if (type_of(params[i]) != type) continue;
      const int32_t at = table->count++;
      table->tensors[at] = fill(i);
      table->aligned[at] = runs[i].aligned();
      const int64_t chunk = kChunk / bytes_of(type);
      const int64_t blocks = table->start[at] + (params[i].numel() + chunk - 1) / chunk;
      STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "params: too many elements for one launch");
      table->start[at + 1] = static_cast<int32_t>(blocks);
      if (table->count == kTensors) {
        go(type, *table);
        std::memset(static_cast<void*>(table.get()), 0, sizeof *table);
      }
    }
    if (table->count) go(type, *table);
  }
}

}  // namespace clnp::cuda
