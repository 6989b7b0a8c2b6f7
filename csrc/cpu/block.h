// The functions that each instruction set provides: loops over a block of at most kBlock elements.
// T is the type computed in, float or double.  A block fits the first-level cache.  Operands that
// are not already contiguous T (halves, integers, strided views) are staged into it by the caller,
// walk.h.  tile.h has the functions for pixels.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../element.h"
#include "ahead.h"
#include "tile.h"

namespace customloss::cpu {

// Elements per block, and the most float32 terms that are added before a flush to float64.
constexpr int64_t kBlock = 1024;
// Sums of columns are added to a second row of float32 sums after every kCarryAdds additions, and
// these are flushed to float64 after at most kColumnAdds.  Equal terms round in the same direction,
// so a float32 sum must have few terms for its error to stay small.
constexpr int64_t kCarryAdds = 32;
constexpr int64_t kColumnAdds = 30 * kCarryAdds;
constexpr int kColumnArrays = 8;

// Exactly one of `soft` and `hard` is set; `weight` may be null.
template <class T>
struct Block {
  const T* input;
  const T* soft;
  const uint8_t* hard;
  const T* weight;
  int64_t size;
  Activation activation;
  T scale, offset;
  bool plain;  // a sigmoid with scale 1 and offset 0
  // instead of `input`, where a headline block is not staged: float16 or bfloat16
  const uint16_t* halves = nullptr;
  bool float16 = false;

  // The case that has loops of its own: a plain sigmoid of bool targets without weights.
  bool headline() const { return plain && hard != nullptr && weight == nullptr; }
};

// Coefficients of a block: one for all elements, or one per element (`per_element`).
template <class T>
struct Coefficients {
  const T *a, *b, *c, *d;
  bool per_element;
};

// What sum_columns() has summed: `rows` rows of `columns` columns side by side, and into each of
// them adds[row] rows of the matrix.
struct Fold {
  int64_t rows, columns;
  const int32_t* adds;
  bool headline;  // Block::headline() of all blocks that were added
};

template <class T>
struct BlockKernels {
  // to[i] = T(from[i * stride])
  void (*stage)(Dtype dtype, const void* from, int64_t stride, int64_t size, T* to);
  // to[i * stride] = dtype(from[i]), rounded to nearest even
  void (*unstage)(Dtype dtype, const T* from, int64_t size, void* to, int64_t stride);
  // sums[0..3] += tp, fp, fn, tn of the block
  void (*sum)(const Block<T>& block, double* sums);
  // Adds a block to the sums of its columns.  `sums` is kColumnArrays arrays of `pitch` elements,
  // zero at first; what they mean is up to the instruction set.  The caller calls carry_columns()
  // every kCarryAdds blocks and, after at most kColumnAdds blocks, flush_columns(), which adds to
  // tp, fp, fn and tn, four arrays of `to_pitch`.
  void (*sum_columns)(const Block<T>& block, T* sums, int64_t pitch);
  void (*carry_columns)(const Fold& fold, T* sums, int64_t pitch);
  void (*flush_columns)(const Fold& fold, T* sums, int64_t pitch, double* to, int64_t to_pitch);
  // out[i] = the gradient by `wrt`
  void (*gradient)(const Block<T>& block, Wrt wrt, const Coefficients<T>& g, T* out);
  // The same by the logits of Block::halves, in their dtype.  Null where neither this nor sum()
  // reads them.
  void (*gradient_halves)(const Block<T>& block, const Coefficients<T>& g, uint16_t* out);
};

struct BlockSet {
  BlockKernels<float> f32;
  BlockKernels<double> f64;
};

extern const BlockSet kBlocksBaseline;
#if defined(__x86_64__) || defined(_M_X64)
extern const BlockSet kBlocksAvx2;
extern const BlockSet kBlocksAvx512;
#elif defined(__AARCH64EL__)
extern const BlockSet kBlocksNeon;
#endif

struct InstructionSet {
  const char* name;
  const BlockSet* blocks;
  TileSet tiles;
};

// The best set this processor has, or the one CUSTOMLOSS_CPU_ISA names; chosen once.
const InstructionSet& instruction_set();

template <class T>
const BlockKernels<T>& block_kernels() {
  if constexpr (sizeof(T) == 4) {
    return instruction_set().blocks->f32;
  } else {
    return instruction_set().blocks->f64;
  }
}

template <class T>
const PixelKernels<T>& pixel_kernels_of() {
  if constexpr (sizeof(T) == 4) {
    return *instruction_set().tiles.f32;
  } else {
    return *instruction_set().tiles.f64;
  }
}

}  // namespace customloss::cpu
