// Copies between memory of any strides and the rows of a tile (tile.h), of which each holds one
// class.  Included by isa_*.cpp after block_impl.h, whose conversions it uses.  There is no include
// guard, on purpose; everything is in an anonymous namespace, one copy per instruction set.

namespace customloss::cpu {
namespace {

template <class T, class From>
void stage_pixels_as(const void* from, int64_t class_stride, int64_t pixel_stride, int64_t classes,
                     int64_t pixels, T* to, int64_t pitch) {
  const From* source = static_cast<const From*>(from);
  if (pixel_stride == 1 || class_stride != 1) {
    for (int64_t c = 0; c < classes; ++c) {
      stage_as<T, From>(source + c * class_stride, pixel_stride, pixels, to + c * pitch);
    }
    return;
  }
  // The classes of a pixel lie next to each other: take a few pixels at a time.
  constexpr int64_t kLines = 16;
  int64_t i = 0;
  for (; i + kLines <= pixels; i += kLines) {
    const From* line = source + i * pixel_stride;
    for (int64_t c = 0; c < classes; ++c) {
      T* row = to + c * pitch + i;
      for (int64_t k = 0; k < kLines; ++k) row[k] = load<T>(line[k * pixel_stride + c]);
    }
  }
  for (; i < pixels; ++i) {
    for (int64_t c = 0; c < classes; ++c) {
      to[c * pitch + i] = load<T>(source[i * pixel_stride + c]);
    }
  }
}

template <class T>
void stage_pixels(Dtype dtype, const void* from, int64_t class_stride, int64_t pixel_stride,
                  int64_t classes, int64_t pixels, T* to, int64_t pitch) {
  with_dtype(dtype, [&]<class From>() {
    stage_pixels_as<T, From>(from, class_stride, pixel_stride, classes, pixels, to, pitch);
  });
}

template <class T>
void unstage_pixels(Dtype dtype, const T* from, int64_t pitch, int64_t classes, int64_t pixels,
                    void* to, int64_t class_stride, int64_t pixel_stride) {
  char* const bytes = static_cast<char*>(to);
  const int64_t size = dtype_size(dtype);
  if (pixel_stride == 1 || class_stride != 1) {
    for (int64_t c = 0; c < classes; ++c) {
      unstage<T>(dtype, from + c * pitch, pixels, bytes + c * class_stride * size, pixel_stride);
    }
    return;
  }
  alignas(64) T line[kBlock];
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t first = 0; first < classes; first += kBlock) {
      const int64_t count = classes - first < kBlock ? classes - first : kBlock;
      for (int64_t c = 0; c < count; ++c) line[c] = from[(first + c) * pitch + i];
      unstage<T>(dtype, line, count, bytes + (i * pixel_stride + first) * size, 1);
    }
  }
}

constexpr int kLowWord = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 1;

// The two halves of a class number as an int64.  Loops over 32 bits take half as many registers.
struct Label {
  uint32_t low;
  int32_t high;

  explicit Label(int64_t number)
      : low(static_cast<uint32_t>(number)), high(static_cast<int32_t>(number >> 32)) {}
};

template <class From>
CUSTOMLOSS_HD uint32_t low_of(const From* label) {
  using Word = uint32_t __attribute__((may_alias));
  if constexpr (sizeof(From) == 8) return reinterpret_cast<const Word*>(label)[kLowWord];
  return static_cast<uint32_t>(static_cast<int32_t>(*label));
}
template <class From>
CUSTOMLOSS_HD int32_t high_of(const From* label) {
  using Word = int32_t __attribute__((may_alias));
  if constexpr (sizeof(From) == 8) return reinterpret_cast<const Word*>(label)[1 - kLowWord];
  return static_cast<int32_t>(*label) < 0 ? -1 : 0;
}

// kIgnored: how many values are compared with, where the last ones may be the first again.
template <class From, int kIgnored>
bool stage_labels_as(const From* __restrict from, int64_t stride, int64_t pixels, int64_t classes,
                     const Ignored& ignored, int32_t* __restrict to) {
  uint32_t low[kMostIgnored];
  int32_t high[kMostIgnored];
  for (int k = 0; k < kIgnored; ++k) {
    const Label value(ignored.values[k]);
    low[k] = value.low;
    high[k] = value.high;
  }
  const uint32_t most = static_cast<uint32_t>(classes);
  int32_t unknown = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const From* const own = from + i * stride;
    const bool known = (high_of(own) == 0) & (low_of(own) < most);
    bool left_out = false;
    for (int k = 0; k < kIgnored; ++k) {
      left_out |= (low_of(own) == low[k]) & (high_of(own) == high[k]);
    }
    to[i] = known & !left_out ? static_cast<int32_t>(low_of(own)) : -1;
    unknown |= known | left_out ? 0 : 1;
  }
  return unknown != 0;
}

// The same for class numbers that lie next to each other, which is most of them.
template <class From, int kIgnored>
bool stage_labels_from(const void* from, int64_t stride, int64_t pixels, int64_t classes,
                       const Ignored& ignored, int32_t* to) {
  const From* const labels = static_cast<const From*>(from);
  if (stride != 1) {
    return stage_labels_as<From, kIgnored>(labels, stride, pixels, classes, ignored, to);
  }
  constexpr int64_t kSize = sizeof(From);
  bool unknown = false;
  in_stretches(
      pixels,
      [&](int64_t first, int64_t last) {
        fetch_ahead(labels + first, (last - first) * kSize, pixels * kSize);  // the next tile
      },
      [&](int64_t first, int64_t last) {
        unknown |= stage_labels_as<From, kIgnored>(labels + first, 1, last - first, classes,
                                                   ignored, to + first);
      });
  return unknown;
}

inline bool stage_labels(Dtype dtype, const void* from, int64_t stride, int64_t pixels,
                         int64_t classes, const Ignored& ignored, int32_t* to) {
  const auto stage_as = [&]<class From>() {
    switch (ignored.count) {
      case 0: return stage_labels_from<From, 0>(from, stride, pixels, classes, ignored, to);
      case 1: return stage_labels_from<From, 1>(from, stride, pixels, classes, ignored, to);
      default:
        return stage_labels_from<From, kMostIgnored>(from, stride, pixels, classes, ignored, to);
    }
  };
  return with_label_dtype(dtype, stage_as);
}

// Puts zeros where the target of a class does not count.
template <class T>
inline void clear_ignored(const Tile<T>& tile, int64_t c, T* __restrict to) {
  if (tile.labels != nullptr) {
    const int32_t* __restrict labels = tile.labels;
#pragma omp simd
    for (int64_t i = 0; i < tile.pixels; ++i) to[i] = labels[i] < 0 ? T(0) : to[i];
    return;
  }
  const T* __restrict soft = tile.soft + c * tile.pitch;
  for (int k = 0; k < tile.ignored.count; ++k) {
    const T ignored = static_cast<T>(tile.ignored.values[k]);
#pragma omp simd
    for (int64_t i = 0; i < tile.pixels; ++i) to[i] = soft[i] == ignored ? T(0) : to[i];
  }
  if (!tile.ignores_nan) return;
#pragma omp simd
  for (int64_t i = 0; i < tile.pixels; ++i) to[i] = soft[i] == soft[i] ? to[i] : T(0);
}

// kLive and the weights become 0 where nothing counts.  Class numbers are spread out into `soft` if
// the tile has it.  If `weighted`, `weight` (or kLive without it) holds weights already; else it
// becomes 1 wherever something counts.
template <class T>
void settle(const Tile<T>& tile, bool weighted) {
  const int64_t pixels = tile.pixels;
  const int32_t* __restrict labels = tile.labels;
  T* __restrict live = tile.rows + kLive * tile.pitch;
  if (tile.weight != nullptr || !weighted) {
    for (int64_t i = 0; i < pixels; ++i) live[i] = tile.weight != nullptr ? T(0) : T(1);
  }
  for (int64_t c = 0; tile.weight != nullptr && c < tile.classes; ++c) {
    T* __restrict own = tile.weight + c * tile.pitch;
    if (!weighted) {
      for (int64_t i = 0; i < pixels; ++i) own[i] = T(1);
    }
    clear_ignored(tile, c, own);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) live[i] = own[i] == T(0) ? live[i] : T(1);
  }
  if (labels == nullptr) return;
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) live[i] = labels[i] < 0 ? T(0) : live[i];
  for (int64_t c = 0; tile.soft != nullptr && c < tile.classes; ++c) {
    T* __restrict own = tile.soft + c * tile.pitch;
    const int32_t cls = static_cast<int32_t>(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) own[i] = labels[i] == cls ? T(1) : T(0);
  }
}

}  // namespace
}  // namespace customloss::cpu
