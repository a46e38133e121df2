//! What the processor can do at best: the ceilings that [`super::super::Roofline`] measures.

use super::vector::{Vector, sum_lanes};

super::entry! {
    /// Reads all words once, as the one-row matrix product does (four streams), and
    /// stores a checksum in the second part.
    pub(crate) fn stream((&[f32], &mut f32)) = stream_body
}

#[inline(always)]
unsafe fn stream_body<V: Vector, const N: usize>((words, checksum): (&[f32], &mut f32)) {
    let quarter = words.len() / 4 / V::LANES * V::LANES;
    // SAFETY: each stream stays within its quarter of `words`.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for start in (0..quarter).step_by(V::LANES) {
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(words.as_ptr().add(part * quarter + start)));
            }
        }
        *checksum = sum_lanes(sums[0].add(sums[1]).add(sums[2].add(sums[3])));
    }
}

/// Sums that `multiply_adds` keeps in flight.
const SUMS: usize = 12;

super::entry! {
    /// Runs `rounds` rounds of multiply-adds on registers; stores how many there
    /// were, and a checksum.
    pub(crate) fn multiply_adds((u64, &mut u64, &mut f32)) = multiply_adds_body
}

#[inline(always)]
unsafe fn multiply_adds_body<V: Vector, const N: usize>(
    (rounds, count, checksum): (u64, &mut u64, &mut f32),
) {
    // SAFETY: register operations only.
    unsafe {
        let mut sums = [V::splat(*checksum); SUMS];
        let factor = V::splat(std::hint::black_box(0.999));
        let term = V::splat(std::hint::black_box(1.0e-3));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = term.plus_product(*sum, factor);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = total.add(*sum);
        }
        *checksum = sum_lanes(total);
        *count = rounds * (SUMS * V::LANES) as u64;
    }
}
