// How work is cut for the device, decided on the host by shape, strides and alignment alone.  The
// properties of the device play no part, so that the same bits come out everywhere.
//
//   planar    a team of 1 to 256 threads takes a chunk of one group; small groups share a block
//   columns   a block takes a band of rows times a tile of neighbouring classes; each thread owns
//             kWidth classes and keeps their sums in registers from row to row
#pragma once

#include <algorithm>
#include <bit>
#include <numeric>

#include "../ceil_div.h"
#include "../element.h"
#include "../layout.h"

namespace customloss::cuda {

constexpr int kThreads = 256;

// The smallest power of two that is at least `a`, no larger than `most`.
inline int64_t power_of_two(int64_t a, int64_t most) {
  int64_t power = 1;
  while (power < a && power < most) power *= 2;
  return power;
}

// A group's elements are runs of the innermost axis; a run is covered by aligned vectors, the
// first and the last of which may stick out.
struct Planar {
  int64_t run, runs;                 // elements of a run, runs of a group
  int64_t vectors_per_run, vectors;  // of a run, of a group
  int64_t chunk, units;              // vectors of a unit, units of a group
  int64_t groups, classes;
  int64_t step[kOperands];  // bytes to the next vector of a thread
  int lanes, lane_bits;     // threads of a team, a power of two, and its logarithm
  bool whole;               // every run is aligned and a whole number of vectors
  bool wide;                // indices need 64 bits

  int64_t blocks() const { return ceil_div(groups * units, kThreads / lanes); }
};

// `rows` and `columns` are those of the layout handed to the kernel, in which `fold` rows of a
// dense matrix may form one, so that odd class counts still load whole vectors.
struct Columns {
  int64_t rows, run;              // of a sample; of its innermost axis
  int64_t columns, tail_columns;  // of a row; of the last row
  int64_t classes, samples;
  int64_t tiles, bands, band_rows;
  int64_t step[kOperands];  // bytes to the next row of a thread
  int tile, slots, fold;    // vectors of a tile, rows of a block at a time
  bool wide;

  int64_t blocks() const { return samples * bands * tiles; }
};

// Whether neighbouring threads take neighbouring classes: if these lie together in memory, unless
// samples have too few rows for that.
inline bool by_columns(const Layout& layout) {
  return layout.interleaved() && (layout.sample.size == 1 || layout.reduced_size >= 64);
}

inline bool needs_64_bits(std::initializer_list<int64_t> numbers) {
  return std::any_of(numbers.begin(), numbers.end(),
                     [](int64_t number) { return number >= (int64_t{1} << 31); });
}

// `aligned`: every run starts at a vector boundary.
inline Planar plan_planar(const Layout& layout, int width, bool aligned) {
  constexpr int64_t kMostUnits = 2048, kSmallestChunk = 1024, kSmallGroup = 128;
  Planar cut{};
  cut.groups = layout.groups();
  cut.classes = layout.cls.size;
  cut.run = layout.inner().size;
  cut.whole = aligned && cut.run % width == 0;
  cut.runs = cut.run == 0 ? 0 : layout.reduced_size / cut.run;
  cut.vectors_per_run = std::max<int64_t>(1, ceil_div(cut.run + (aligned ? 0 : width - 1), width));
  cut.vectors = cut.runs * cut.vectors_per_run;
  cut.chunk = std::max<int64_t>(1, cut.vectors);
  if (layout.interleaved()) {
    cut.lanes = 1;
  } else if (cut.vectors <= kSmallGroup) {
    cut.lanes = static_cast<int>(power_of_two(ceil_div(cut.vectors, 4), 32));
  } else {
    cut.lanes = kThreads;
    const int64_t even = ceil_div(cut.groups * cut.vectors, kMostUnits);
    cut.chunk = ceil_div(std::max(even, kSmallestChunk), kThreads) * kThreads;
  }
  cut.lane_bits = std::countr_zero(static_cast<unsigned>(cut.lanes));
  cut.units = std::max<int64_t>(1, ceil_div(cut.vectors, cut.chunk));
  cut.wide = needs_64_bits({cut.groups * cut.units, cut.vectors + cut.chunk});
  return cut;
}

// How many rows of a dense matrix together make whole vectors.
inline int64_t fold_of(int64_t classes, int width) {
  return width / std::gcd<int64_t>(classes, width);
}

inline Columns plan_columns(const Layout& layout, int64_t classes, int width, int64_t fold,
                            int64_t tail_columns) {
  constexpr int64_t kBlocks = 1024, kMostAdds = 2048, kSmallestBand = 64;
  Columns cut{};
  cut.rows = layout.reduced_size;
  cut.run = layout.inner().size;
  cut.columns = layout.cls.size;
  cut.tail_columns = tail_columns;
  cut.classes = classes;
  cut.samples = layout.sample.size;
  cut.fold = static_cast<int>(fold);
  const int64_t vectors = ceil_div(cut.columns, width);
  const int64_t most = fold > 1 ? kThreads : (width > 1 ? 32 : 64);
  cut.tiles = ceil_div(vectors, most);
  cut.tile = static_cast<int>(ceil_div(vectors, cut.tiles));
  cut.tiles = ceil_div(vectors, cut.tile);
  cut.slots = kThreads / cut.tile;
  const int64_t smallest = std::max<int64_t>(kSmallestBand / fold, 2 * cut.slots);
  const int64_t wanted = std::min(ceil_div(kBlocks, cut.tiles * cut.samples),
                                  std::max<int64_t>(1, cut.rows / smallest));
  const int64_t even = std::min(ceil_div(cut.rows, wanted), kMostAdds * cut.slots);
  cut.band_rows = std::max<int64_t>(1, ceil_div(even, cut.slots)) * cut.slots;
  cut.bands = std::max<int64_t>(1, ceil_div(cut.rows, cut.band_rows));
  cut.wide = needs_64_bits({cut.blocks(), cut.rows + cut.band_rows});
  return cut;
}

}  // namespace customloss::cuda
