//! RMSNorm and SwiGLU.

use super::STEP;
use super::vector::{Vector, exp, sum_lanes};

/// `out = x / sqrt(mean(x²) + epsilon) · weight`, one row. `out` may be `x`.
#[derive(Clone, Debug)]
pub(crate) struct Norm<'a> {
    /// `width` floats.
    pub(crate) x: *const f32,
    /// `width` floats; no other thread touches them meanwhile.
    pub(crate) out: *mut f32,
    /// One per element: its length is the width, a multiple of [`STEP`].
    pub(crate) weight: &'a [f32],
    /// Added to the mean square.
    pub(crate) epsilon: f32,
}

super::entry! {
    /// Computes a [`Norm`].
    pub(crate) fn rms_norm(&Norm<'_>) = norm_body
}

#[inline(always)]
unsafe fn norm_body<V: Vector, const N: usize>(job: &Norm<'_>) {
    let width = job.weight.len();
    debug_assert!(width.is_multiple_of(STEP));
    // SAFETY: `x`, `out` and `weight` have `width` floats; STEP is N registers.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for start in (0..width).step_by(STEP) {
            for n in 0..N {
                let x = V::load(job.x.add(start + n * V::LANES));
                sums[n] = sums[n].plus_product(x, x);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = total.add(*sum);
        }
        let mean = sum_lanes(total) / width as f32;
        let scale = V::splat(1.0 / (mean + job.epsilon).sqrt());
        for start in (0..width).step_by(V::LANES) {
            let scaled = V::load(job.x.add(start)).mul(scale);
            scaled.mul(V::load(job.weight.as_ptr().add(start))).store(job.out.add(start));
        }
    }
}

/// `out = silu(gate) · up` for some panels of one row of the fused gate-and-up product,
/// where panels of gate and of up alternate.
#[derive(Clone, Debug)]
pub(crate) struct SwiGlu {
    /// First gate panel.
    pub(crate) gate_up: *const f32,
    /// First output; no other thread touches these panels meanwhile.
    pub(crate) out: *mut f32,
    /// Pairs of panels, each two registers wide.
    pub(crate) pairs: usize,
}

super::entry! {
    /// Computes a [`SwiGlu`].
    pub(crate) fn swiglu(&SwiGlu) = swiglu_body
}

#[inline(always)]
unsafe fn swiglu_body<V: Vector, const N: usize>(job: &SwiGlu) {
    let panel = 2 * V::LANES;
    // SAFETY: `gate_up` has 2 · pairs panels, `out` has pairs panels.
    unsafe {
        for pair in 0..job.pairs {
            for half in 0..2 {
                let from = job.gate_up.add(pair * 2 * panel + half * V::LANES);
                let gate = V::load(from);
                let up = V::load(from.add(panel));
                let one = V::splat(1.0);
                let sigmoid_inverse = one.add(exp(gate.mul(V::splat(-1.0))));
                gate.div(sigmoid_inverse).mul(up).store(job.out.add(pair * panel + half * V::LANES));
            }
        }
    }
}
