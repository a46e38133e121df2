//! Philox 4x32-10: a counter-based random number generator.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//! A block of four 32-bit words is a pure function of a 128-bit counter and a 64-bit
//! key: any thread on any machine can compute any block, in any order.

/// Multipliers of the two counter halves.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl constants added to the key between rounds: the fractional parts of the golden ratio and of √3.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds of the block function.
const ROUNDS: u32 = 10;

/// Returns the four words of block `counter` under `key`.
///
/// One round maps `(c0, c1, c2, c3)` to
/// `(hi(M1·c2) ^ c1 ^ k0, lo(M1·c2), hi(M0·c0) ^ c3 ^ k1, lo(M0·c0))`; the key advances by
/// the Weyl constants between rounds.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [a, b, c, d] = philox4x32_10_lanes(counter.map(|word| [word]), key);
    [a[0], b[0], c[0], d[0]]
}

/// [`philox4x32_10`] of `N` counters at once, which vectorises. `counters[w][n]` is word
/// `w` of counter `n`; the result has the same layout.
#[inline]
pub fn philox4x32_10_lanes<const N: usize>(counters: [[u32; N]; 4], key: [u32; 2]) -> [[u32; N]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counters;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for n in 0..N {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(c0[n]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(c2[n]);
            (c0[n], c1[n]) = ((b >> 32) as u32 ^ c1[n] ^ k0, b as u32);
            (c2[n], c3[n]) = ((a >> 32) as u32 ^ c3[n] ^ k1, a as u32);
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three vectors for `philox4x32 10` in the `kat_vectors` file of Random123.
    #[test]
    fn the_published_known_answers_come_out() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn every_bit_of_counter_and_key_changes_about_half_of_the_output() {
        let base = philox4x32_10([1, 2, 3, 4], [5, 6]);
        for bit in 0..192u32 {
            let (mut counter, mut key) = ([1u32, 2, 3, 4], [5u32, 6]);
            let word =
                if bit < 128 { &mut counter[bit as usize / 32] } else { &mut key[bit as usize / 32 - 4] };
            *word ^= 1 << (bit % 32);
            let changed: u32 =
                philox4x32_10(counter, key).iter().zip(base).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert!((32..=96).contains(&changed), "bit {bit} changes {changed} of 128");
        }
    }
}
