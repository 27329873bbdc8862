// Shared by the operators: tensors as runs of memory, numbers on the host or on the device.
#pragma once

#include <current_device.h>

#include <cstring>
#include <memory>

#include "../lists.h"
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

// Tensors of one shape as runs of memory in the same order: themselves, if they are dense and have
// the same strides, else contiguous copies that finish() writes back.
class Runs {
 public:
  explicit Runs(std::vector<Tensor> tensors) : originals_(std::move(tensors)), runs_(originals_) {
    if (same_layout(originals_)) return;
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
": expected one element of float32 or float64, got ", shape_text(t));
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
  STD_TORCH_CHECK(on_device(*t) && t->numel() == 1 && t->scalar_type() == ScalarType::Float, name,
                  ": expected one element of float32 on the device, got ", shape_text(*t));
  return static_cast<const float*>(t->const_data_ptr());
}

inline void check_device(const std::vector<Tensor>& params) {
  STD_TORCH_CHECK(on_device(params[0]), "params.device: expected a GPU; move with .to()");
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
      STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "params: expected fewer elements for one launch");
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
