//! What the sampling kernels need to know of each row, gathered on the host.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ffi::kernels::{LogitAdjustment, SamplingRow};
use crate::protocol::{SamplingParams, TokenId, TokenMask};
use crate::sampling::TokenHistory;
use crate::sampling::distribution::TEMPERATURE_MIN;
use crate::sampling::float::ln;

/// Position of a row that samples nothing.
const PADDING: i32 = -1;
/// `SamplingRow::mask` of a row that may sample any token.
const NO_MASK: i32 = -1;

/// The rows of one sampling call and their logit adjustments. Reused from call to call.
#[derive(Clone, Debug, Default)]
pub struct SamplingRows {
    rows: Vec<SamplingRow>,
    adjustments: Vec<LogitAdjustment>,
    masks: Vec<Arc<TokenMask>>,
    /// Words of all masks.
    mask_words: usize,
    filtered: bool,
}

impl SamplingRows {
    /// Without rows.
    pub fn new() -> SamplingRows {
        SamplingRows::default()
    }

    /// Forgets all rows, keeps the memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.adjustments.clear();
        self.masks.clear();
        self.mask_words = 0;
        self.filtered = false;
    }

    /// Adds a row that samples the token for absolute `position`. `history` holds the tokens
    /// before it (read only where [`SamplingParams::has_penalties`]).
    pub fn push(&mut self, params: &SamplingParams, position: u32, history: &TokenHistory) {
        let first = self.adjustments.len();
        self.adjust(params, history);
        let row = self.row(params);
        let adjustments = (self.adjustments.len() - first) as i32;
        let first_adjustment = first as i32;
        self.rows.push(SamplingRow { position: position as i32, first_adjustment, adjustments, ..row });
    }

    /// [`push`](Self::push), among the tokens that `mask` allows; `None` allows all. Rows that share
    /// a mask share its words.
    pub fn push_masked(
        &mut self,
        params: &SamplingParams,
        position: u32,
        history: &TokenHistory,
        mask: Option<&Arc<TokenMask>>,
    ) {
        self.push(params, position, history);
        let Some(mask) = mask else { return };
        let first = self.mask_start(mask);
        if let Some(row) = self.rows.last_mut() {
            row.mask = first;
            // the product of 0 and -infinity is NaN; so small a scale is 0 to any sum with noise
            row.scale = row.scale.max(f32::MIN_POSITIVE);
        }
    }

    /// The first word of a mask among all masks; adds it if it is new.
    fn mask_start(&mut self, mask: &Arc<TokenMask>) -> i32 {
        let mut first = self.mask_words;
        for known in self.masks.iter().rev() {
            first -= known.words().len();
            if Arc::ptr_eq(known, mask) {
                return first as i32;
            }
        }
        self.masks.push(Arc::clone(mask));
        let first = self.mask_words;
        self.mask_words += mask.words().len();
        first as i32
    }

    /// Adds a row for each position, of parameters that [adjust](adjusts) nothing.
    pub fn push_unadjusted(&mut self, params: &SamplingParams, positions: impl Iterator<Item = i32>) {
        let row = self.row(params);
        self.rows.extend(positions.map(|position| SamplingRow { position, ..row }));
    }

    /// What rows of these parameters have in common; notes whether they filter.
    fn row(&mut self, params: &SamplingParams) -> SamplingRow {
        // Also for NaN, which no comparison holds for.
        let sampled = params.temperature > 0.0;
        let row = SamplingRow {
            seed: params.seed,
            scale: if sampled { 1.0 / params.temperature.max(TEMPERATURE_MIN) } else { 1.0 },
            top_p: params.top_p,
            min_score: min_score(params.min_p),
            top_k: i32::try_from(params.top_k).unwrap_or(i32::MAX),
            greedy: i32::from(!sampled),
            position: PADDING,
            first_adjustment: self.adjustments.len() as i32,
            adjustments: 0,
            mask: NO_MASK,
            unused: 0,
        };
        self.filtered |= sampled && (row.top_k > 0 || row.top_p < 1.0 || row.min_score > f32::NEG_INFINITY);
        row
    }

    /// Adds a row that samples nothing.
    pub fn push_padding(&mut self) {
        self.rows.push(SamplingRow { position: PADDING, mask: NO_MASK, ..SamplingRow::default() });
    }

    /// The rows, in order.
    pub fn rows(&self) -> &[SamplingRow] {
        &self.rows
    }

    /// The adjustments that the rows point into.
    pub fn adjustments(&self) -> &[LogitAdjustment] {
        &self.adjustments
    }

    /// The masks that the rows point into, one behind the other.
    pub fn masks(&self) -> &[Arc<TokenMask>] {
        &self.masks
    }

    /// Words of all masks.
    pub fn mask_words(&self) -> usize {
        self.mask_words
    }

    /// Whether a row uses top-k, top-p or min-p: `SampleParams::filtered`.
    pub fn filtered(&self) -> bool {
        self.filtered
    }

    /// Steps 1 to 3 of [`distribution`](crate::sampling::distribution), as one entry per token.
    fn adjust(&mut self, params: &SamplingParams, history: &TokenHistory) {
        if !adjusts(params) {
            return;
        }
        let mut by_token: BTreeMap<TokenId, LogitAdjustment> = BTreeMap::new();
        if params.has_penalties() {
            for (token, seen) in history.occurrences() {
                let entry = entry(&mut by_token, token);
                entry.repetition = params.repetition_penalty;
                if seen.output > 0 {
                    entry.presence = params.presence_penalty;
                    entry.frequency = params.frequency_penalty * seen.output as f32;
                }
            }
        }
        for &(token, bias) in &params.logit_bias {
            entry(&mut by_token, token).bias += bias;
        }
        self.adjustments.extend(by_token.into_values());
    }
}

/// Whether parameters change logits before a token is sampled from them.
pub fn adjusts(params: &SamplingParams) -> bool {
    params.has_penalties() || !params.logit_bias.is_empty()
}

fn entry(by_token: &mut BTreeMap<TokenId, LogitAdjustment>, token: TokenId) -> &mut LogitAdjustment {
    by_token.entry(token).or_insert(LogitAdjustment {
        token: token as i32,
        repetition: 1.0,
        ..LogitAdjustment::default()
    })
}

fn min_score(min_p: f32) -> f32 {
    if min_p > 0.0 { ln(min_p.clamp(f32::MIN_POSITIVE, 1.0)) } else { f32::NEG_INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(params: &SamplingParams) -> (SamplingRow, bool) {
        let mut rows = SamplingRows::new();
        rows.push(params, 7, &TokenHistory::none());
        (rows.rows()[0], rows.filtered())
    }

    #[test]
    fn a_greedy_row_ignores_its_filters() {
        let params = SamplingParams { top_k: 5, top_p: 0.5, min_p: 0.1, ..SamplingParams::greedy() };
        let (row, filtered) = row(&params);
        assert_eq!((row.greedy, row.scale, filtered), (1, 1.0, false));
        let (not_a_number, _) = self::row(&SamplingParams { temperature: f32::NAN, ..params });
        assert_eq!(not_a_number.greedy, 1);
    }

    #[test]
    fn each_filter_alone_makes_a_row_filtered() {
        let plain = SamplingParams { temperature: 0.8, ..SamplingParams::greedy() };
        assert!(!row(&plain).1);
        assert!(row(&SamplingParams { top_k: 1, ..plain.clone() }).1);
        assert!(row(&SamplingParams { top_p: 0.99, ..plain.clone() }).1);
        assert!(row(&SamplingParams { min_p: 0.01, ..plain }).1);
    }

    #[test]
    fn rows_without_adjustments_are_the_same_one_by_one_and_together() {
        let biased = SamplingParams { logit_bias: vec![(3, 2.0)], ..SamplingParams::greedy() };
        let plain = SamplingParams { temperature: 0.7, top_k: 9, seed: 5, ..SamplingParams::greedy() };
        let (mut together, mut single) = (SamplingRows::new(), SamplingRows::new());
        together.push(&biased, 1, &TokenHistory::none());
        together.push_unadjusted(&plain, [40, 41, 41].into_iter());
        single.push(&biased, 1, &TokenHistory::none());
        [40, 41, 41].iter().for_each(|&position| single.push(&plain, position, &TokenHistory::none()));
        assert!(adjusts(&biased) && !adjusts(&plain));
        assert_eq!(format!("{together:?}"), format!("{single:?}"));
        assert_eq!(together.rows()[3].first_adjustment, 1);
    }

    #[test]
    fn rows_that_share_a_mask_share_its_words() {
        let mask = |step| Arc::new(TokenMask::from_fn(70, |token| token % step == 0));
        let (evens, thirds) = (mask(2), mask(3));
        let mut rows = SamplingRows::new();
        for mask in [Some(&evens), None, Some(&thirds), Some(&evens)] {
            rows.push_masked(&SamplingParams::greedy(), 1, &TokenHistory::none(), mask);
        }
        assert_eq!(rows.rows().iter().map(|row| row.mask).collect::<Vec<_>>(), [0, -1, 3, 0]);
        assert_eq!((rows.masks().len(), rows.mask_words()), (2, 6));
        rows.clear();
        assert_eq!((rows.masks().len(), rows.mask_words()), (0, 0));
    }

    #[test]
    fn penalties_and_bias_of_a_token_become_one_adjustment() {
        let params = SamplingParams {
            repetition_penalty: 1.5,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            logit_bias: vec![(3, 2.0), (9, -1.0)],
            ..SamplingParams::greedy()
        };
        let history = TokenHistory::new(2, vec![3, 4, 4, 4]);
        let mut rows = SamplingRows::new();
        rows.push_padding();
        rows.push(&params, 4, &history);
        let facts = |a: &LogitAdjustment| (a.token, a.repetition, a.presence, a.frequency, a.bias);
        let found: Vec<_> = rows.adjustments().iter().map(facts).collect();
        assert_eq!(found, [(3, 1.5, 0.0, 0.0, 2.0), (4, 1.5, 0.25, 1.0, 0.0), (9, 1.0, 0.0, 0.0, -1.0)]);
        assert_eq!((rows.rows()[0].position, rows.rows()[0].adjustments), (-1, 0));
        assert_eq!((rows.rows()[1].first_adjustment, rows.rows()[1].adjustments), (0, 3));
    }
}
