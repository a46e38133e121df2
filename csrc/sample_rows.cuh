// Samples one token per row of logits: the argmax of score plus Gumbel noise over the tokens
// that the row's filters keep, bit for bit as in src/sampling/sampler.rs.
//
// One pass over the logits (scan.cuh). Rows with filters take a second pass (filter.cuh), whose
// last CTA selects the kept tokens (select.cuh). sample_rows_naive.cuh is the naive reference.
//
// The including file's `Sink` consumes the results of the rows; its functions are called by
// all lanes of one warp.
#pragma once

#include "sample_rows_naive.cuh"
#include "filter.cuh"
#include "scan.cuh"

namespace ss {

template <typename Sink>
int sample_rows(const SampleParams &p, const Sink &sink, CUstream_st *stream)
{
    const dim3 grid(splits_for(p.row_count, p.vocab), p.row_count);
    const int status = launch(scan_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
    if (status != 0 || !p.filtered) return status;
    return launch(filter_kernel<Sink>, grid, kSampleThreads, 0, stream, p, sink);
}

}  // namespace ss
