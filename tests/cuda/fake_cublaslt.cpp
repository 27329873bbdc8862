// cuBLASLt on a CPU: the functions that csrc/cuda calls, by plain loops that follow layouts,
// leading dimensions, transposes and epilogues. Sums are in float32, in order.
//
// CLNP_FAKE_CUBLASLT names a fault: "relu" (forgets it), "bias" (adds the next column's), "sums"
// (leaves out the last row), "stride" (ignores the output's), "old" (an old version), "none" (has
// no algorithm).
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdlib>
#include <cstring>

#include "../../csrc/cuda/cublaslt.h"

using namespace clnp::cuda::lt;

namespace clnp::cuda::lt {
struct Context {};
struct DescData {
  int32_t compute, transposed[2] = {kPlain, kPlain};
  uint32_t epilogue = kDefault;
  void* bias = nullptr;
};
struct LayoutData {
  int32_t type;
  int64_t rows, columns, stride;
};
struct PreferenceData {
  uint64_t workspace = 0;
  uint32_t reduction = 7, alignment[4] = {256, 256, 256, 256};
};
}  // namespace clnp::cuda::lt

namespace {

constexpr int kInvalid = 7;
int heuristics = 0, created = 0;

bool faulty(const char* fault) {
  const char* asked = std::getenv("CLNP_FAKE_CUBLASLT");
  return asked && !std::strcmp(asked, fault);
}

template <class T>
struct View {
  const Layout layout;
  T* data;
  bool transposed;
  T& at(int64_t i, int64_t j) const {
    return data[transposed ? j + i * layout->stride : i + j * layout->stride];
  }
};

template <class T>
void multiply(const DescData& desc, const View<const T>& a, const View<const T>& b,
              const View<T>& d) {
  const int64_t m = d.layout->rows, n = d.layout->columns;
  const int64_t k = a.transposed ? a.layout->rows : a.layout->columns;
  T* bias = static_cast<T*>(desc.bias);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      float sum = 0.0f;
      for (int64_t l = 0; l < k; ++l) sum += float(a.at(i, l)) * float(b.at(l, j));
      if (desc.epilogue & kWithBias) sum += float(bias[faulty("bias") ? (i + 1) % m : i]);
      if (desc.epilogue & kRelu && !faulty("relu")) sum = sum < 0.0f ? 0.0f : sum;
      (faulty("stride") ? d.data[i + j * m] : d.at(i, j)) = T(sum);
    }
  if (desc.epilogue & kBiasGradient)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int64_t l = 0; l < k - faulty("sums"); ++l) sum += float(b.at(l, j));
      bias[j] = T(sum);
    }
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return faulty("old") ? 110400 : 130101; }
int fake_heuristics() { return heuristics; }
int fake_descriptors() { return created; }

int cublasLtCreate(Handle* handle) {
  static Context context;
  *handle = &context;
  return kSuccess;
}

int cublasLtMatmulDescCreate(Desc* desc, int compute, int scale) {
  if (scale != kFloat || (compute != kCompute && compute != kComputeTf32)) return kNotSupported;
  *desc = new DescData{compute};
  return ++created, kSuccess;
}
int cublasLtMatmulDescDestroy(Desc desc) { return delete desc, --created, kSuccess; }

int cublasLtMatmulDescSetAttribute(Desc desc, int attribute, const void* value, size_t size) {
  if (size != (attribute == kBias ? sizeof(void*) : 4)) return kInvalid;
  if (attribute == kTransA || attribute == kTransB)
    std::memcpy(&desc->transposed[attribute - kTransA], value, size);
  else if (attribute == kEpilogue)
    std::memcpy(&desc->epilogue, value, size);
  else if (attribute == kBias)
    std::memcpy(&desc->bias, value, size);
  else
    return kInvalid;
  return kSuccess;
}

int cublasLtMatrixLayoutCreate(Layout* layout, int type, uint64_t rows, uint64_t columns,
                               int64_t stride) {
  if (stride < int64_t(rows)) return kInvalid;
  *layout = new LayoutData{type, int64_t(rows), int64_t(columns), stride};
  return ++created, kSuccess;
}
int cublasLtMatrixLayoutDestroy(Layout layout) { return delete layout, --created, kSuccess; }

int cublasLtMatmulPreferenceCreate(Preference* preference) {
  *preference = new PreferenceData;
  return ++created, kSuccess;
}
int cublasLtMatmulPreferenceDestroy(Preference preference) {
  return delete preference, --created, kSuccess;
}

int cublasLtMatmulPreferenceSetAttribute(Preference preference, int attribute, const void* value,
                                         size_t size) {
  if (size != (attribute == kWorkspace ? 8 : 4)) return kInvalid;
  if (attribute == kWorkspace)
    std::memcpy(&preference->workspace, value, size);
  else if (attribute == kReduction)
    std::memcpy(&preference->reduction, value, size);
  else if (kAlignA <= attribute && attribute <= kAlignD)
    std::memcpy(&preference->alignment[attribute - kAlignA], value, size);
  else
    return kInvalid;
  return kSuccess;
}

int cublasLtMatmulAlgoGetHeuristic(Handle, Desc desc, Layout a, Layout b, Layout c, Layout d,
                                   Preference preference, int wanted, Heuristic* found,
                                   int* count) {
  ++heuristics;
  *count = 0;
  const bool ta = desc->transposed[0] == kTransposed, tb = desc->transposed[1] == kTransposed;
  const bool fits = (ta ? a->columns : a->rows) == d->rows &&
                    (tb ? b->rows : b->columns) == d->columns &&
                    (ta ? a->rows : a->columns) == (tb ? b->columns : b->rows) && c == d;
  if (!fits || wanted < 1) return kInvalid;
  // The library takes pointers to be multiples of 256 bytes unless told otherwise.
  for (const uint32_t bytes : preference->alignment)
    if (bytes != 16) return kNotSupported;
  if (preference->reduction != kInOrder || faulty("none")) return kNotSupported;
  *count = 1;
  *found = {{{42}}, 1024, kSuccess, 1.0f, {}};
  return kSuccess;
}

int cublasLtMatmul(Handle, Desc desc, const void* alpha, const void* a, Layout a_layout,
                   const void* b, Layout b_layout, const void* beta, const void*, Layout, void* d,
                   Layout d_layout, const Algorithm* algorithm, void* workspace, size_t bytes,
                   void*) {
  if (*static_cast<const float*>(alpha) != 1.0f || *static_cast<const float*>(beta) != 0.0f)
    return kInvalid;
  if (algorithm->data[0] != 42 || bytes != 1024 || !workspace) return kInvalid;
  if (!aligned(a) || !aligned(b) || !aligned(d) || !aligned(desc->bias)) return kInvalid;
  std::memset(workspace, 0xff, bytes);
  const bool ta = desc->transposed[0] == kTransposed, tb = desc->transposed[1] == kTransposed;
  const auto run = [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    multiply<T>(*desc, {a_layout, static_cast<const T*>(a), ta},
                {b_layout, static_cast<const T*>(b), tb}, {d_layout, static_cast<T*>(d), false});
    return kSuccess;
  };
  switch (d_layout->type) {
    case kFloat:
      return run(static_cast<float*>(nullptr));
    case kHalf:
      return run(static_cast<c10::Half*>(nullptr));
    case kBFloat16:
      return run(static_cast<c10::BFloat16*>(nullptr));
  }
  return kInvalid;
}
}
