// The memory of gradients.  Fresh memory is the main cost of a backward pass on the CPU: the
// operating system zeroes and maps it page by page as it is first written.  So the block of a
// gradient that is freed is kept for the next one, and a fresh block asks for pages of 2 MiB
// instead of 4 KiB, which is 512 times fewer.
//
// CUSTOMLOSS_GRADIENT_CACHE is the most bytes that are kept; 0 keeps nothing.  Without it that is
// a sixteenth of the machine's memory.  CUSTOMLOSS_HUGE_PAGES=0 (1 is the default) asks for no
// large pages, for virtual machines whose host takes free ones back: there a first write may now
// and then wait until the host returns one.
#pragma once

#include <cstdint>

#include "../torch.h"

namespace customloss::cpu {

// What the environment says; each is read once, and throws a std::runtime_error that names the
// variable if its word is none of those expected.
bool huge_pages_wanted();
int64_t gradient_cache_limit();

// The bytes of the blocks that are kept at the moment; the other one also gives them back.
int64_t gradient_cache_bytes();
int64_t empty_gradient_cache();

// An uninitialised tensor like `like`, as torch::stable::empty_like makes it, in a kept block if
// one fits.
Tensor gradient_like(const Tensor& like);

// Asks for huge pages for memory that is about to be written from end to end.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace customloss::cpu
