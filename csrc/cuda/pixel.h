// The passes of pixel.cu, in which the classes of a pixel are read together, as the operators of
// confusion.cu call them.
#pragma once

#include "pixel_plan.h"

namespace customloss::cuda {

// Doubles that a forward pass needs beside the sums.
int64_t pixel_workspace(const PixelWork& work);

// Writes partial sums [rows][sample][class][unit] to the start of `workspace`, or the sums
// themselves to `sums` where a group has one partial sum.  Clears `ticket`, if there is one.
void pixel_partial_sums(const PixelWork& work, double* workspace, double* sums, unsigned* ticket,
                        const Stream& stream);

// The operators `confusion` and `confusion_backward` of such passes.
Tensor pixel_confusion(const Reading& reading, const Stream& stream);
Tensor pixel_backward(const arguments::Incoming& incoming, const Reading& reading, Wrt wrt,
                      const Stream& stream);

}  // namespace customloss::cuda
