// The few parts of cuBLASLt that the products need, by its public header (tests/cuda compares). The
// library is the one that torch has loaded, found at run time: nothing is linked, so the build does
// not need it, and one binary serves CUDA 12 and 13.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace clnp::cuda::lt {

using Handle = struct Context*;
using Desc = struct DescData*;
using Layout = struct LayoutData*;
using Preference = struct PreferenceData*;

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int32_t status;
  float waves;
  int32_t reserved[4];
};

constexpr int kSuccess = 0, kNotSupported = 15;
constexpr size_t kOldest = 120000;
// cudaDataType, cublasComputeType_t, cublasOperation_t
enum : int32_t { kFloat = 0, kHalf = 2, kBFloat16 = 14 };
enum : int32_t { kCompute = 68, kComputeTf32 = 77 };
enum : int32_t { kPlain = 0, kTransposed = 1 };
// cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t
enum : int32_t { kTransA = 3, kTransB = 4, kEpilogue = 7, kBias = 8 };
enum : int32_t { kWorkspace = 1, kReduction = 3, kAlignA = 5, kAlignB, kAlignC, kAlignD };
// cublasLtEpilogue_t: the gradient of a bias is the sum of the second operand
enum : uint32_t { kDefault = 1, kRelu = 2, kWithBias = 4, kBiasGradient = 512 };
// cublasLtReductionScheme_t: partial sums in float32, added in an order that is always the same
constexpr uint32_t kInOrder = 2;

// The functions of the library, by their names without "cublasLt".
struct Library {
  size_t (*GetVersion)();
  int (*Create)(Handle*);
  int (*MatmulDescCreate)(Desc*, int, int);
  int (*MatmulDescDestroy)(Desc);
  int (*MatmulDescSetAttribute)(Desc, int, const void*, size_t);
  int (*MatrixLayoutCreate)(Layout*, int, uint64_t, uint64_t, int64_t);
  int (*MatrixLayoutDestroy)(Layout);
  int (*MatmulPreferenceCreate)(Preference*);
  int (*MatmulPreferenceDestroy)(Preference);
  int (*MatmulPreferenceSetAttribute)(Preference, int, const void*, size_t);
  int (*MatmulAlgoGetHeuristic)(Handle, Desc, Layout, Layout, Layout, Layout, Preference, int,
                                Heuristic*, int*);
  int (*Matmul)(Handle, Desc, const void*, const void*, Layout, const void*, Layout, const void*,
                const void*, Layout, void*, Layout, const Algorithm*, void*, size_t, void*);

  // Find the functions in a library that is loaded already, else load it. Returns the reason why
  // that failed, or ''.
  std::string open(const char* file) {
    void* found = dlopen(file, RTLD_LAZY | RTLD_NOLOAD);
    if (!found) found = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
    if (!found) return dlerror();
    std::string missing;
    const auto find = [&](auto& function, const char* name) {
      using Function = std::remove_reference_t<decltype(function)>;
      function = reinterpret_cast<Function>(dlsym(found, name));
      if (!function && missing.empty()) missing = std::string(file) + " has no " + name;
    };
#define CLNP_FIND(name) find(name, "cublasLt" #name)
    CLNP_FIND(GetVersion), CLNP_FIND(Create), CLNP_FIND(Matmul);
    CLNP_FIND(MatmulDescCreate), CLNP_FIND(MatmulDescDestroy), CLNP_FIND(MatmulDescSetAttribute);
    CLNP_FIND(MatrixLayoutCreate), CLNP_FIND(MatrixLayoutDestroy);
    CLNP_FIND(MatmulPreferenceCreate), CLNP_FIND(MatmulPreferenceDestroy);
    CLNP_FIND(MatmulPreferenceSetAttribute), CLNP_FIND(MatmulAlgoGetHeuristic);
#undef CLNP_FIND
    if (missing.empty() && GetVersion() < kOldest)
      return std::string(file) + " is version " + std::to_string(GetVersion()) + ", older than " +
             std::to_string(kOldest);
    return missing;
  }
};

}  // namespace clnp::cuda::lt
