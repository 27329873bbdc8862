// dropout: elements are dropped by the numbers of a counter-based generator, so that nothing is
// kept for the gradient and threads need not agree on anything.
#include "elements.h"

namespace clnp {
namespace {

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): four words of 32 bits for every block.
constexpr uint32_t kMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kStep[2] = {0x9E3779B9u, 0xBB67AE85u};
constexpr int kRounds = 10;
// As many blocks at once as make the loops wide; two elements take a word.
constexpr int64_t kBlocks = 16;
constexpr int64_t kGroup = kBlocks * 8;
constexpr int64_t kGroupsPerThread = 256;

struct Numbers {
  uint64_t seed;
  uint32_t threshold;  // an element stays if its 16 bits are not below
  double scale;
};

CLNP_INLINE void philox(uint64_t group, uint64_t seed, uint32_t (&words)[4][kBlocks]) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int64_t j = 0; j < kBlocks; ++j) {
    const uint64_t block = group * kBlocks + j;
    words[0][j] = static_cast<uint32_t>(block);
    words[1][j] = static_cast<uint32_t>(block >> 32);
    words[2][j] = words[3][j] = 0;
  }
  for (int round = 0; round < kRounds; ++round) {
    // Unrolled, the loop would no longer be vectorised.
#pragma GCC unroll 1
    for (int64_t j = 0; j < kBlocks; ++j) {
      const uint64_t a = static_cast<uint64_t>(kMultiplier[0]) * words[0][j];
      const uint64_t b = static_cast<uint64_t>(kMultiplier[1]) * words[2][j];
      words[0][j] = static_cast<uint32_t>(b >> 32) ^ words[1][j] ^ key[0];
      words[1][j] = static_cast<uint32_t>(b);
      words[2][j] = static_cast<uint32_t>(a >> 32) ^ words[3][j] ^ key[1];
      words[3][j] = static_cast<uint32_t>(a);
    }
    key[0] += kStep[0];
    key[1] += kStep[1];
  }
}

template <class T>
CLNP_INLINE void drop_groups(const T* x, T* y, int64_t begin, int64_t end, int64_t count,
                             const Numbers& n) {
  using W = wide_t<T>;
  const W scale = static_cast<W>(n.scale);
  uint32_t words[4][kBlocks];
  for (int64_t group = begin; group < end; ++group) {
    philox(static_cast<uint64_t>(group), n.seed, words);
    W factors[kGroup];
    for (int64_t w = 0; w < 4; ++w)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t j = 0; j < kBlocks; ++j) {
          const uint32_t bits = (words[w][j] >> (16 * half)) & 0xffffu;
          factors[(2 * w + half) * kBlocks + j] = bits >= n.threshold ? scale : W(0);
        }
    const int64_t first = group * kGroup, size = std::min(kGroup, count - first);
    // What is dropped is zero, whatever it was.
    for (int64_t i = 0; i < size; ++i)
      store(y + first + i, factors[i] != W(0) ? load(x[first + i]) * factors[i] : W(0));
  }
}

}  // namespace

#define CLNP_FOR(T)                                                                            \
  CLNP_CLONES void drop_groups_of(const T* x, T* y, int64_t begin, int64_t end, int64_t count, \
                                  const Numbers& n) {                                          \
    drop_groups(x, y, begin, end, count, n);                                                   \
  }
CLNP_ELEMENT_TYPES(CLNP_FOR)
#undef CLNP_FOR

namespace {

Tensor dropout(const Tensor& x, const Tensor& seed, double p) {
  check_float("x", x);
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.is_cpu() && seed.numel() == 1,
                  "seed: expected one int64 on the CPU");
  STD_TORCH_CHECK(0 <= p && p < 1, "p: expected 0 <= p < 1, got ", p);
  const Tensor input = x.is_contiguous() ? x : torch::stable::contiguous(x);
  Tensor result = torch::stable::empty_like(input);
  const double parts = 65536;
  const double threshold = std::min(std::nearbyint(p * parts), parts - 1);
  const Numbers numbers{static_cast<uint64_t>(*const_pointer<int64_t>(seed)),
                        static_cast<uint32_t>(threshold), 1 / (1 - threshold / parts)};
  const int64_t count = x.numel(), groups = (count + kGroup - 1) / kGroup;
  visit(x.scalar_type(), [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* from = const_pointer<T>(input);
    T* to = pointer<T>(result);
    torch::stable::parallel_for(0, groups, kGroupsPerThread, [&](int64_t begin, int64_t end) {
      drop_groups_of(from, to, begin, end, count, numbers);
    });
  });
  return result;
}

}  // namespace
}  // namespace clnp

STABLE_TORCH_LIBRARY_IMPL(clnp_kernels, CPU, m) { m.impl("dropout", TORCH_BOX(&clnp::dropout)); }
