// Chooses one token per row of logits: the largest score plus Gumbel noise over the tokens
// that the row's filters keep, exactly as src/sampling/sampler.rs does.
//
// One pass over the logits (scan.cuh); rows with filters take a second one (filter.cuh), whose
// last CTA selects what is kept (select.cuh). choose_naive.cuh is the plain version.
//
// The includer's `Sink` says what happens to a row's result; its functions are called by all
// lanes of one warp.
#pragma once

#include "choose_naive.cuh"
#include "filter.cuh"
#include "scan.cuh"

namespace ss {

template <typename Sink>
int choose(const SampleParams &p, const Sink &sink, CUstream_st *stream)
{
    const dim3 grid(splits_for(p.row_count, p.vocab), p.row_count);
    const int status = launch(scan_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
    if (status != 0 || !p.filtered) return status;
    return launch(filter_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
}

}  // namespace ss
