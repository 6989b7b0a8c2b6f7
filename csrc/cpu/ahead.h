// Fetches memory before it is needed. The hardware does so within a page of 4 KiB and stops at its
// end, where a loop then waits for the memory; these loops are fast enough to feel it.
#pragma once

#include <cstdint>

namespace customloss::cpu {

// How far ahead. Less and the memory is not there in time, more and it has left the cache again.
constexpr int64_t kBytesAhead = 4096;

// The lines that follow `from` by so many bytes (`ahead`), as many as hold `bytes`. That may be
// beyond the end of the memory: fetching what is not there does nothing.
inline __attribute__((always_inline)) void fetch_ahead(const void* from, int64_t bytes,
                                                       int64_t ahead = kBytesAhead) {
  constexpr int64_t kLine = 64;
  const uintptr_t first = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(ahead);
  for (int64_t at = 0; at < bytes; at += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(first + static_cast<uintptr_t>(at)));
  }
}

// Elements of a loop between two fetches.
constexpr int64_t kFetch = 256;

// Calls body(first, last) for stretches of a loop, and fetch(first, last) before each.
template <class Fetch, class Body>
inline __attribute__((always_inline)) void in_stretches(int64_t size, const Fetch& fetch,
                                                        const Body& body) {
  int64_t i = 0;
  for (; i + kFetch <= size; i += kFetch) {
    fetch(i, i + kFetch);
    body(i, i + kFetch);
  }
  if (i < size) body(i, size);
}

}  // namespace customloss::cpu
