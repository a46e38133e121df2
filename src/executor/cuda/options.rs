//! What a CUDA executor is built with, and the sizes that its steps are rounded up to.
#![forbid(unsafe_code)]

/// Largest captured step, in verify rows (input tokens of decode and verification).
pub const VERIFY_ROWS_MAX: usize = 1024;
/// Most sequences of one call.
pub const BATCH_SEQUENCES_MAX: u32 = 256;
/// Most drafts of one sequence in one call: a mask has 64 bits, one is the committed token's.
pub const DRAFT_TOKENS_MAX: u32 = 63;

/// Row counts that steps are captured at, ascending; a step is padded to the next one.
const CAPTURED_ROWS: [usize; 17] =
    [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, VERIFY_ROWS_MAX];
/// Steps that are not captured are padded to a multiple of this many rows.
pub const EAGER_ROWS: usize = 64;

/// How many KV blocks the pools get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvBudget {
    /// This share of the memory that is free once weights and scratch memory are in place,
    /// above 0 and at most 1; both pools get the same number of blocks.
    MemoryFraction(f64),
    /// These many blocks.
    Blocks {
        /// In the target's pool.
        target: u32,
        /// In the draft's pool.
        draft: u32,
    },
}

/// What a CUDA executor is built with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CudaOptions {
    /// Which GPU, as `CUDA_VISIBLE_DEVICES` leaves them.
    pub ordinal: u32,
    /// KV pools.
    pub kv: KvBudget,
    /// Most input tokens in one call.
    pub batch_tokens_max: u32,
    /// Most sequences in one call, at most [`BATCH_SEQUENCES_MAX`].
    pub batch_sequences_max: u32,
    /// Most drafts of one sequence in one call, at most [`DRAFT_TOKENS_MAX`].
    pub draft_tokens_max: u32,
    /// Most captured graphs per model; beyond it steps are launched kernel by kernel. 0: none.
    pub graphs_max: usize,
    /// Whether the algorithms of captured sizes are chosen by measurement.
    pub tune: bool,
}

impl Default for CudaOptions {
    fn default() -> CudaOptions {
        CudaOptions {
            ordinal: 0,
            kv: KvBudget::MemoryFraction(0.9),
            batch_tokens_max: 4096,
            batch_sequences_max: BATCH_SEQUENCES_MAX,
            draft_tokens_max: 16,
            graphs_max: 96,
            tune: true,
        }
    }
}

impl CudaOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the field, its value and its bound.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u32, most: u32| match value {
            0 => Err(format!("{name} is 0")),
            value if value > most => Err(format!("{name} is {value}, at most {most}")),
            _ => Ok(()),
        };
        within("batch_sequences_max", self.batch_sequences_max, BATCH_SEQUENCES_MAX)?;
        within("batch_tokens_max", self.batch_tokens_max, 1 << 20)?;
        within("draft_tokens_max + 1", self.draft_tokens_max + 1, DRAFT_TOKENS_MAX + 1)?;
        match self.kv {
            KvBudget::MemoryFraction(share) if !(share > 0.0 && share <= 1.0) => {
                Err(format!("the KV memory fraction is {share}, not above 0 and at most 1"))
            }
            KvBudget::Blocks { target: 0, .. } => Err("the target's KV pool has 0 blocks".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The captured row count for `rows`, if there is one.
pub fn captured_rows(rows: usize) -> Option<usize> {
    CAPTURED_ROWS.into_iter().find(|&size| size >= rows)
}

/// Every captured row count up to the one that holds `rows`.
pub fn captured_sizes(rows: usize) -> impl Iterator<Item = usize> {
    let largest = captured_rows(rows).unwrap_or(VERIFY_ROWS_MAX);
    CAPTURED_ROWS.into_iter().filter(move |&size| size <= largest)
}

/// Rows that a step of `rows` is padded to when it is launched kernel by kernel.
pub fn eager_rows(rows: usize) -> usize {
    match captured_rows(rows) {
        Some(size) if size <= EAGER_ROWS => size,
        _ => rows.next_multiple_of(EAGER_ROWS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_padded_up_and_never_down() {
        assert_eq!(captured_rows(0), Some(1));
        for rows in 1..=VERIFY_ROWS_MAX {
            assert!(captured_rows(rows).is_some_and(|size| size >= rows));
            assert!(eager_rows(rows) >= rows && eager_rows(rows) < rows + EAGER_ROWS);
        }
        assert_eq!(captured_rows(VERIFY_ROWS_MAX + 1), None);
        assert_eq!(eager_rows(1025), 1088);
        assert_eq!(captured_sizes(5).collect::<Vec<_>>(), [1, 2, 4, 8]);
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        assert_eq!(CudaOptions::default().check(), Ok(()));
        let bad = CudaOptions { batch_sequences_max: 257, ..CudaOptions::default() };
        assert!(bad.check().is_err_and(|error| error.contains("batch_sequences_max is 257")));
        for share in [0.0, -1.0, 1.1, f64::NAN] {
            let bad = CudaOptions { kv: KvBudget::MemoryFraction(share), ..CudaOptions::default() };
            assert!(bad.check().is_err(), "{share}");
        }
        let none = CudaOptions { kv: KvBudget::Blocks { target: 0, draft: 1 }, ..CudaOptions::default() };
        assert!(none.check().is_err());
    }
}
