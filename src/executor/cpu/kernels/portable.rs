//! The path of processors without a vector set of ours: eight lanes in an array,
//! which the compiler turns into whatever the target has. Products are rounded
//! before they are added, so its bits differ from the other paths'.

use super::vector::Vector;

/// Eight floats.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Portable, operation: impl Fn(f32, f32) -> f32) -> Portable {
        Portable(std::array::from_fn(|lane| operation(self.0[lane], other.0[lane])))
    }
}

impl Vector for Portable {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Portable {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Portable {
        // SAFETY: the caller vouches for eight floats.
        Portable(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight floats.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const f32) -> [Portable; 2] {
        // SAFETY: the caller vouches for eight words.
        let words = unsafe { from.cast::<[u32; 8]>().read_unaligned() };
        [
            Portable(words.map(|word| f32::from_bits(word << 16))),
            Portable(words.map(|word| f32::from_bits(word & 0xffff_0000))),
        ]
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Portable, b: Portable) -> Portable {
        Portable(std::array::from_fn(|lane| self.0[lane] + a.0[lane] * b.0[lane]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Portable) -> Portable {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Portable) -> Portable {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Portable) -> Portable {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Portable) -> Portable {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Portable) -> Portable {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Portable {
        // Adding and taking away 1.5 · 2^23 rounds to nearest even without a library call.
        const SHIFT: f32 = 12_582_912.0;
        Portable(self.0.map(|lane| (lane + SHIFT) - SHIFT))
    }
    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Portable {
        Portable(self.0.map(|lane| f32::from_bits(((lane as i32 + 127) << 23) as u32)))
    }
}
