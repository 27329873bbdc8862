// Images [B, C, H, W] by channels: in rows (channels_last: all channels of a pixel side by side) or
// in planes (all pixels of a channel side by side). Sums over batch and pixels, one for each
// channel, fused with work on the elements.
#pragma once

#include <vector>

#include "columns.h"

namespace clnp {

// Whether images are in channels_last. PyTorch's rule: the order of the strides decides, so a slice
// of channels has the format of its whole.
bool is_channels_last(const Tensor& x);

// x itself, or a dense copy in this format.
Tensor dense(const Tensor& x, bool last);

// New images in channels_last or in planes, not initialised.
Tensor new_images(const Tensor& like, int64_t batch, int64_t channels, int64_t height,
                  int64_t width, bool last);

void check_images(const char* name, const Tensor& t);

// Distances in elements: from image to image, from channel to channel and from pixel to pixel. One
// of the last two is 1.
struct Layout {
  bool last;
  int64_t image, channel, pixel;
};

// x or a copy of it, with evenly spaced pixels, and its layout.
struct Images {
  Images(const Tensor& x, bool last);
  Tensor tensor;
  Layout layout;
};

// sum over i of term(i) by independent sums, so that the additions need not wait for each other
template <class F>
CLNP_INLINE double sum_run(int64_t count, const F& term) {
  constexpr int64_t kLanes = 16;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma GCC ivdep
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(term(i + j));
  }
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(term(i));
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

// Go over all elements of images, in parallel, and add up the sums, sums[c] for channel c:
// - in rows: rows(row, rows, channel, channels, sums) for each piece; a row is a pixel
// - in planes: run(image, channel) returns the sum over a plane
// The result does not depend on the number of threads.
template <class Rows, class Run>
void sum_channels(bool last, int64_t images, int64_t channels, int64_t pixels, double* sums,
                  const Rows& rows, const Run& run) {
  if (last) return sum_pieces(images * pixels, channels, sums, rows);
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(images * pixels, 1), 1);
  torch::stable::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < images; ++i) sum += run(i, c);
      sums[c] = sum;
    }
  });
}

template <class W>
struct Two {
  W first, second;
};

// first[c] and second[c] = sums over rows of the two parts of term(r, c), four rows at a time.
template <class W, class F>
CLNP_INLINE void sum_two_piece(int64_t rows, int64_t columns, double* __restrict__ first,
                               double* __restrict__ second, const F& term) {
  for (int64_t c = 0; c < columns; ++c) first[c] = second[c] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      const Two<W> t0 = term(r, c), t1 = term(r + 1, c), t2 = term(r + 2, c), t3 = term(r + 3, c);
      first[c] += static_cast<double>((t0.first + t1.first) + (t2.first + t3.first));
      second[c] += static_cast<double>((t0.second + t1.second) + (t2.second + t3.second));
    }
  }
  for (; r < rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) {
      const Two<W> t = term(r, c);
      first[c] += static_cast<double>(t.first);
      second[c] += static_cast<double>(t.second);
    }
  }
}

// The same over a run of elements, by independent sums.
template <class W, class F>
CLNP_INLINE Two<double> sum_two_run(int64_t count, const F& term) {
  constexpr int64_t kLanes = 16;
  double first[kLanes] = {}, second[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const Two<W> t = term(i + j);
      first[j] += static_cast<double>(t.first);
      second[j] += static_cast<double>(t.second);
    }
  Two<double> sum{0, 0};
  for (; i < count; ++i) {
    const Two<W> t = term(i);
    sum.first += static_cast<double>(t.first);
    sum.second += static_cast<double>(t.second);
  }
  for (int64_t j = 0; j < kLanes; ++j) {
    sum.first += first[j];
    sum.second += second[j];
  }
  return sum;
}

// sum_channels for two sums: rows(row, rows, channel, channels, first, second) and run(image,
// channel). The result does not depend on the number of threads.
template <class Rows, class Run>
void sum_two(bool last, int64_t images, int64_t channels, int64_t pixels, double* first,
             double* second, const Rows& rows, const Run& run) {
  if (!last) {
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(images * pixels, 1), 1);
    torch::stable::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        first[c] = second[c] = 0;
        for (int64_t i = 0; i < images; ++i) {
          const Two<double> two = run(i, c);
          first[c] += two.first;
          second[c] += two.second;
        }
      }
    });
    return;
  }
  const int64_t count = images * pixels, down = std::max<int64_t>((count + kRows - 1) / kRows, 1);
  const int64_t across = (channels + kColumns - 1) / kColumns;
  std::vector<double> partial(2 * down * channels);
  torch::stable::parallel_for(0, down * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / across * kRows, c = i % across * kColumns;
      double* part = partial.data() + i / across * 2 * channels + c;
      rows(r, std::min(count - r, kRows), c, std::min(channels - c, kColumns), part,
           part + channels);
    }
  });
  std::fill(first, first + channels, 0.0);
  std::fill(second, second + channels, 0.0);
  for (int64_t d = 0; d < down; ++d)
    for (int64_t c = 0; c < channels; ++c) {
      first[c] += partial[2 * d * channels + c];
      second[c] += partial[(2 * d + 1) * channels + c];
    }
}

// to = max(from, 0) or from; sums[c] = sum of |to| over batch and pixels of channel c. Both have
// one shape; they may be one. Without `sums` (null) nothing is added up.
void join_images(const Tensor& from, const Tensor& to, bool relu, bool last, double* sums);

// sums[c] = sum over batch and pixels of channel c.
void sum_images(const Tensor& x, bool last, double* sums);

}  // namespace clnp
