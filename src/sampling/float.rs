//! `ln` and `exp` as fixed sequences of IEEE 754 single-precision operations.
//!
//! Every step is one addition, subtraction or multiplication rounded to nearest, or
//! exact integer arithmetic on the bits. Nothing is fused and no math library is called,
//! so every machine produces the same bits. In CUDA, write each `a * b` as
//! `__fmul_rn(a, b)` and each `a + b` as `__fadd_rn(a, b)` (`a - b`: `__fsub_rn`), in
//! the association shown, and keep denormals, so that the compiler contracts nothing.
//! There are no branches, so loops over slices vectorise.

/// ln 2 in two parts; the first has 12 trailing zero bits, so `k * LN_2_HIGH` is exact for |k| < 2^12.
const LN_2_HIGH: f32 = 0.693_115_23;
const LN_2_LOW: f32 = 3.194_618_3e-5;
/// Bits of the float just below the square root of one half.
const SQRT_HALF_BITS: u32 = 0x3F35_04F3;
/// Minimax for (ln(1 + f) - f + f²/2) / f³ on [√½ - 1, √2 - 1], lowest degree first.
const LN_COEFFICIENTS: [f32; 8] = [
    0.333_333_16,
    -0.250_007_96,
    0.200_022_83,
    -0.166_249_69,
    0.141_814_19,
    -0.131_252_93,
    0.128_792_06,
    -0.078_654_625,
];

/// 1.5 · 2^23: adding it to a number of magnitude at most 2^22 leaves that number,
/// rounded to an integer, in the low bits of the sum.
pub(super) const ROUNDING_SHIFT: f32 = 12_582_912.0;
/// Minimax for (exp(r) - 1 - r) / r² on [-½ ln 2, ½ ln 2], lowest degree first.
const EXP_COEFFICIENTS: [f32; 5] = [0.5, 0.166_665_2, 0.041_666_21, 0.008_368_822, 0.001_395_033_8];
/// [`exp`] is constant below this argument; e^-87 is the smallest integer power above the denormals.
const EXP_ARGUMENT_MIN: f32 = -87.0;

/// x = 2^k · (1 + f) with 1 + f in [√½, √2): returns `(k, f)`. `x` is positive and normal.
#[inline]
fn decompose(x: f32) -> (f32, f32) {
    let bits = x.to_bits();
    let k = (bits.wrapping_sub(SQRT_HALF_BITS) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((k << 23) as u32));
    (k as f32, m - 1.0)
}

/// k · ln 2 + ln(1 + f), by Horner's rule on [`LN_COEFFICIENTS`]:
/// `k·high + (f + (f³·P(f) - ½·f² + k·low))`, `f² = f·f`, `f³·P = (f²·f)·P`.
#[inline]
fn assemble(k: f32, f: f32) -> f32 {
    let mut p = LN_COEFFICIENTS[7];
    for c in LN_COEFFICIENTS[..7].iter().rev() {
        p = p * f + c;
    }
    let f2 = f * f;
    let tail = ((f2 * f) * p - 0.5 * f2) + k * LN_2_LOW;
    k * LN_2_HIGH + (f + tail)
}

/// Natural logarithm of a positive normal number; error at most 2 units in the last place.
#[inline]
pub fn ln(x: f32) -> f32 {
    let (k, f) = decompose(x);
    assemble(k, f)
}

/// -ln(1 - w) for `w` in (0, 1 - 2^-24], to a few units in the last place even for tiny
/// `w`. There 1 - w would round it away, so `f = -w` replaces `(1 - w) - 1` wherever
/// `k = 0`.
#[inline]
pub fn minus_ln_one_minus(w: f32) -> f32 {
    let (k, f) = decompose(1.0 - w);
    -assemble(k, if k == 0.0 { -w } else { f })
}

/// e^x for x ≤ 0, to about 2 units in the last place; exactly 1 at 0, and e^-87 for
/// everything below -87.
///
/// `n = (x·log2(e) + shift) - shift`, `r = (x - n·high) - n·low`,
/// `1 + (r + r²·P(r))`, then n is added to the exponent.
#[inline]
pub fn exp(x: f32) -> f32 {
    let x = if x > EXP_ARGUMENT_MIN { x } else { EXP_ARGUMENT_MIN };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING_SHIFT;
    let n = shifted - ROUNDING_SHIFT;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = EXP_COEFFICIENTS[4];
    for c in EXP_COEFFICIENTS[..4].iter().rev() {
        p = p * r + c;
    }
    let e = 1.0 + (r + (r * r) * p);
    // The low bits of `shifted` are n; the exponent field takes it modulo 2^9 bits further up.
    f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// |got - exact| in units of the last place of `exact`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let unit = f64::from((exact.abs() as f32).next_up()) - f64::from(exact.abs() as f32);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn ln_is_within_two_units_of_the_last_place() {
        let mut worst = 0f64;
        for bits in (f32::MIN_POSITIVE.to_bits()..f32::INFINITY.to_bits()).step_by(8191) {
            let x = f32::from_bits(bits);
            worst = worst.max(ulps(ln(x), f64::from(x).ln()));
        }
        for bits in (0.5f32.to_bits()..2f32.to_bits()).step_by(127) {
            let x = f32::from_bits(bits);
            worst = worst.max(ulps(ln(x), f64::from(x).ln()));
        }
        assert!(worst < 2.0, "{worst} units");
        assert_eq!(ln(1.0).to_bits(), 0);
    }

    #[test]
    fn minus_ln_one_minus_keeps_tiny_arguments() {
        let mut worst = 0f64;
        for bits in (2f32.powi(-32).to_bits()..=(1.0 - 2f32.powi(-24)).to_bits()).step_by(997) {
            let w = f32::from_bits(bits);
            worst = worst.max(ulps(minus_ln_one_minus(w), -(-f64::from(w)).ln_1p()));
        }
        assert!(worst < 3.0, "{worst} units");
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let mut worst = 0f64;
        for bits in (1e-9f32.to_bits()..87f32.to_bits()).step_by(997) {
            let x = -f32::from_bits(bits);
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst < 2.0, "{worst} units");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(EXP_ARGUMENT_MIN));
    }

    /// Pins the bits as a reference for other implementations.
    #[test]
    fn the_bits_are_those_of_the_specification() {
        let lns = [0.1f32, 0.7, 1.5, 10.0, 1e-9].map(|x| ln(x).to_bits());
        let tails = [2f32.powi(-32), 0.1, 0.5, 0.999].map(|w| minus_ln_one_minus(w).to_bits());
        let exps = [-0.3f32, -1.0, -20.5].map(|x| exp(x).to_bits());
        assert_eq!(lns, [0xc013_5d8e, 0xbeb6_9e1a, 0x3ecf_991f, 0x4013_5d8e, 0xc1a5_c940]);
        assert_eq!(tails, [0x2f80_0000, 0x3dd7_c741, 0x3f31_7218, 0x40dd_0c70]);
        assert_eq!(exps, [0x3f3d_a643, 0x3ebc_5ab2, 0x30ab_d1d8]);
    }
}
