// Products of matrices by cuBLASLt, with what follows them inside, written straight into slices.
#include <array>
#include <map>
#include <mutex>

#include "cublaslt.h"
#include "tensors.h"

namespace clnp::cuda {
namespace {

constexpr int64_t kBytes = 16;                 // to which pointers and rows are aligned
constexpr uint64_t kMostWorkspace = 32 << 20;  // bytes; torch's own products take as much
constexpr size_t kRemembered = 4096;           // problems; boundaries move with every task

lt::Library library;
bool loaded = false;

struct Plan {
  bool supported;
  lt::Algorithm algorithm;
  int64_t workspace;
};
using Problem = std::array<int64_t, 12>;
std::mutex mutex;  // of the two below; the library's own functions may be called by any thread
std::map<int64_t, lt::Handle> handles;  // by device
std::map<Problem, Plan> plans;

void check_status(int status, const char* what) {
  STD_TORCH_CHECK(status == lt::kSuccess, "cuBLASLt: ", what, " failed with status ", status);
}

// A descriptor that is destroyed at the end of its block.
template <class T>
struct Owned {
  explicit Owned(int (*destroy)(T)) : destroy(destroy) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (value) destroy(value);
  }
  int (*destroy)(T);
  T value{};
};

// A matrix in memory. For the library, whose matrices are columns of memory, one of rows is its
// transpose.
struct Matrix {
  Matrix(const char* name, const Tensor& t) : data(const_cast<void*>(t.const_data_ptr())) {
    check_matrix(name, t);
    STD_TORCH_CHECK(on_device(t), name, ".device: expected a GPU; move with .to()");
    rows = t.stride(1) == 1;
    stride = rows ? t.stride(0) : t.stride(1);
    width = rows ? t.size(1) : t.size(0);
    height = rows ? t.size(0) : t.size(1);
    const int64_t bytes = bytes_of(type_of(t));
    fits = (rows || t.stride(0) == 1) && stride >= width && width > 0 && height > 0 &&
           stride * bytes % kBytes == 0 && reinterpret_cast<uintptr_t>(data) % kBytes == 0;
  }
  void* data;
  bool rows, fits;
  int64_t stride, width, height;
};

int32_t type_for(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return lt::kFloat;
    case ScalarType::BFloat16:
      return lt::kBFloat16;
    case ScalarType::Half:
      return lt::kHalf;
    default:
      STD_TORCH_CHECK(false, "dtype: expected float32, bfloat16 or float16; convert with .to()");
  }
}

// Operands and options of one product, in the library's terms.
struct Call {
  Call(const Matrix& a, const Matrix& b, const Matrix& d, int32_t type, int32_t compute,
       uint32_t epilogue, const void* vector)
      : desc(library.MatmulDescDestroy),
        a_layout(library.MatrixLayoutDestroy),
        b_layout(library.MatrixLayoutDestroy),
        d_layout(library.MatrixLayoutDestroy) {
    check_status(library.MatmulDescCreate(&desc.value, compute, lt::kFloat), "a descriptor");
    set(lt::kTransA, a.rows ? lt::kPlain : lt::kTransposed);
    set(lt::kTransB, b.rows ? lt::kPlain : lt::kTransposed);
    set(lt::kEpilogue, epilogue);
    if (vector) set(lt::kBias, vector);
    layout(a_layout, a, type), layout(b_layout, b, type), layout(d_layout, d, type);
  }

  template <class T>
  void set(int attribute, const T& value) {
    check_status(library.MatmulDescSetAttribute(desc.value, attribute, &value, sizeof value),
                 "an attribute");
  }

  void layout(Owned<lt::Layout>& owned, const Matrix& m, int32_t type) {
    check_status(library.MatrixLayoutCreate(&owned.value, type, m.width, m.height, m.stride),
                 "a layout");
  }

  Owned<lt::Desc> desc;
  Owned<lt::Layout> a_layout, b_layout, d_layout;
};

// The library's choice of an algorithm; not supported where it has none.
Plan planned(lt::Handle handle, const Call& call) {
  Owned<lt::Preference> preference(library.MatmulPreferenceDestroy);
  check_status(library.MatmulPreferenceCreate(&preference.value), "a preference");
  const auto set = [&](int attribute, auto value) {
    check_status(
        library.MatmulPreferenceSetAttribute(preference.value, attribute, &value, sizeof value),
        "a preference's attribute");
  };
  set(lt::kWorkspace, kMostWorkspace);
  set(lt::kReduction, lt::kInOrder);
  for (const int attribute : {lt::kAlignA, lt::kAlignB, lt::kAlignC, lt::kAlignD})
    set(attribute, uint32_t{kBytes});
  lt::Heuristic best{};
  int count = 0;
  const int status = library.MatmulAlgoGetHeuristic(
      handle, call.desc.value, call.a_layout.value, call.b_layout.value, call.d_layout.value,
      call.d_layout.value, preference.value, 1, &best, &count);
  if (status != lt::kNotSupported) check_status(status, "the choice of an algorithm");
  const bool supported = status == lt::kSuccess && count && best.status == lt::kSuccess;
  return {supported, best.algorithm, static_cast<int64_t>(best.workspace)};
}

// The handle of a device and the plan of a problem; null where there is none and none may be made.
lt::Handle prepared(int64_t device, const Problem& problem, const Call& call, bool prepare,
                    Plan& plan) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = plans.find(problem);
  if (known == plans.end() && !prepare) return nullptr;
  lt::Handle& handle = handles[device];
  if (!handle) check_status(library.Create(&handle), "a handle");
  if (known == plans.end()) {
    if (plans.size() >= kRemembered) plans.clear();
    plan = plans[problem] = planned(handle, call);
  } else {
    plan = known->second;
  }
  return plan.supported ? handle : nullptr;
}

int64_t use_library(const std::string& file) {
  lt::Library found{};
  const std::string reason = found.open(file.c_str());
  STD_TORCH_CHECK(reason.empty(), reason);
  const std::lock_guard<std::mutex> lock(mutex);
  library = found, loaded = true;
  handles.clear(), plans.clear();
  return static_cast<int64_t>(library.GetVersion());
}

// out = left @ right, [M, K] and [K, N], each with rows or columns as runs of memory; with a bias
// [N], a ReLU, or the sums of left over K, [M].
//
// Returns false, and does nothing, where the library has no way: pointers or rows are not multiples
// of 16 bytes, it has no algorithm, or it would have to look for one and `prepare` is false.
bool product(const Tensor& left, const Tensor& right, const Tensor& out,
             const std::optional<Tensor>& bias, bool relu, const std::optional<Tensor>& sums,
             bool tf32, bool prepare) {
  STD_TORCH_CHECK(loaded, "cublaslt: expected a library; call cublaslt_load first");
  const Matrix a("right", right), b("left", left), d("out", out);
  const int32_t type = type_for(out);
  for (const Tensor& t : {left, right})
    STD_TORCH_CHECK(t.scalar_type() == out.scalar_type() && same_device(t, out),
                    "left, right: expected dtype and device of out");
  const int64_t m = left.size(0), k = left.size(1), n = right.size(1);
  check_size("right", right, 0, k), check_size("out", out, 0, m), check_size("out", out, 1, n);
  STD_TORCH_CHECK(!(sums && (bias || relu)), "sums: expected None with a bias or a ReLU");
  const std::optional<Tensor>& vector = bias ? bias : sums;
  if (vector)
    STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == (bias ? n : m) &&
                        (vector->size(0) == 1 || vector->stride(0) == 1) &&
                        vector->scalar_type() == out.scalar_type() && same_device(*vector, out),
                    "bias, sums: expected [", bias ? n : m, "], a run of memory like out, got ",
                    shape_text(*vector));
  const void* at = vector ? vector->const_data_ptr() : nullptr;
  if (!a.fits || !b.fits || !d.fits || !d.rows || reinterpret_cast<uintptr_t>(at) % kBytes)
    return false;
  const Guard guard(out.get_device());
  const int32_t compute = type == lt::kFloat && tf32 ? lt::kComputeTf32 : lt::kCompute;
  uint32_t epilogue = (bias ? lt::kWithBias : 0) | (relu ? lt::kRelu : 0);
  if (sums) epilogue = lt::kBiasGradient;
  if (!epilogue) epilogue = lt::kDefault;
  const Problem problem{out.get_device(), type,     compute,  epilogue, m,     n, k,
                        a.stride,         b.stride, d.stride, a.rows,   b.rows};
  const Call call(a, b, d, type, compute, epilogue, at);
  Plan plan;
  const lt::Handle handle = prepared(out.get_device(), problem, call, prepare, plan);
  if (!handle) return false;
  const Tensor workspace = torch::stable::new_empty(out, {plan.workspace}, ScalarType::Byte);
  const float one = 1.0f, zero = 0.0f;
  check_status(library.Matmul(handle, call.desc.value, &one, a.data, call.a_layout.value, b.data,
                              call.b_layout.value, &zero, d.data, call.d_layout.value, d.data,
                              call.d_layout.value, &plan.algorithm,
                              const_cast<void*>(workspace.const_data_ptr()), plan.workspace,
                              current_stream(out)),
               "a product");
  return true;
}

}  // namespace
}  // namespace clnp::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(clnp_kernels_cuda, m) {
  m.def("cublaslt_load(str file) -> int");
  m.def(
      "cublaslt_product(Tensor left, Tensor right, Tensor(a!) out, Tensor? bias, bool relu, "
      "Tensor(b!)? sums, bool tf32, bool prepare) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(clnp_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("cublaslt_load", TORCH_BOX(&clnp::cuda::use_library));
}
STABLE_TORCH_LIBRARY_IMPL(clnp_kernels_cuda, CLNP_DEVICE_KEY, m) {
  m.impl("cublaslt_product", TORCH_BOX(&clnp::cuda::product));
}
