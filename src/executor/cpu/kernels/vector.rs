//! A SIMD register of `f32`, so that each kernel is written once.

/// Operations of one instruction set. Every method compiles to one or a few
/// instructions when inlined into a function that enables the set.
///
/// # Safety
/// All methods need a processor that has the instruction set; pointers must be
/// valid for the lanes they name. Alignment is not needed.
pub(crate) trait Vector: Copy {
    /// Floats in one register.
    const LANES: usize;

    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// `LANES` floats from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// `LANES` floats to memory.
    unsafe fn store(self, to: *mut f32);
    /// `LANES` words, each two bf16: the low halves and the high halves, widened.
    unsafe fn load_bf16_pairs(from: *const f32) -> [Self; 2];
    /// `self + a * b`; fused where the set can.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`.
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer.
    unsafe fn round(self) -> Self;
    /// 2 to the power of an integer in -126..=127.
    unsafe fn exp2_of_integer(self) -> Self;
}

/// e to the power of each lane, relative error below 2e-7; arguments are held to
/// -87..=88, NaN stays NaN. Range reduction by ln 2 in two parts, then the
/// degree-5 minimax polynomial of the Cephes library's `expf`.
#[inline(always)]
pub(super) unsafe fn exp<V: Vector>(x: V) -> V {
    const COEFFICIENTS: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: register operations only; the caller vouches for the instruction set.
    unsafe {
        let x = V::splat(-87.0).max(V::splat(88.0).min(x));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = x.plus_product(n, V::splat(-0.693_359_4)).plus_product(n, V::splat(2.121_944_4e-4));
        let mut p = V::splat(1.987_569_1e-4);
        for coefficient in COEFFICIENTS {
            p = V::splat(coefficient).plus_product(p, r);
        }
        let y = V::splat(1.0).add(r).plus_product(p, r.mul(r));
        y.mul(n.exp2_of_integer())
    }
}

/// The sum of all lanes, by halves: one fixed order.
#[inline(always)]
pub(super) unsafe fn sum_lanes<V: Vector>(vector: V) -> f32 {
    let mut lanes = [0.0f32; super::LANES_MAX];
    // SAFETY: LANES_MAX is at least LANES.
    unsafe { vector.store(lanes.as_mut_ptr()) };
    let mut width = V::LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest lane.
#[inline(always)]
pub(super) unsafe fn max_lanes<V: Vector>(vector: V) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; super::LANES_MAX];
    // SAFETY: LANES_MAX is at least LANES.
    unsafe { vector.store(lanes.as_mut_ptr()) };
    lanes[..V::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
}
