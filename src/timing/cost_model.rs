//! How long a forward pass takes: a staircase over rows plus linear terms.
//!
//! For one model,
//!
//! ```text
//! T(rows, C, A, p, P) = stair(rows + ω·p) + κ·C + α·A + [p > 0]·o + π·P
//! ```
//!
//! where `C` sums the context of each sequence once (bytes of KV read), `A` sums it once per query
//! token (attention arithmetic), `p` are prefill (for the draft model: catch-up) tokens and `P` the
//! context they attend to. All tokens of a pass go through the same matrix products, so they share
//! one staircase: beside a long prefill, which keeps the arithmetic units busy, a row costs several
//! times what it costs in a step that waits for memory. A prefill token counts as `ω` rows, at most
//! one, because only its prompt's last needs logits.
//!
//! The draft model has no `o`; its first call in a step costs
//! [`round_us`](LatencyTerms::round_us) more than the others. A draft head has no catch-up, but reads
//! the hidden states of committed tokens ([`HeadTerms`]). On a GPU a batch is padded up to the
//! next size, that of a captured graph or of a whole tile ([`Between::Pad`]); a CPU has no such
//! sizes and is read off between the measured ones ([`Between::Interpolate`]). All times are
//! microseconds.

use serde::{Deserialize, Serialize};

use super::error::ProfileError;

/// Most decode and verification rows of one step; the largest captured graph.
pub const ROWS_MAX: usize = 1024;
/// The staircase is tabulated up to this many rows, prefill included, and extrapolated beyond.
const TABLE_ROWS: usize = 4 * ROWS_MAX;
/// Most rows that others are tabulated beside.
pub const BESIDE_ROWS_MAX: usize = TABLE_ROWS - ROWS_MAX;

/// Rows to either side that a slope is taken over: a tile.
const SLOPE_ROWS: u32 = 128;

/// What happens between two measured row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Between {
    /// The batch is padded to the next measured size.
    Pad,
    /// The time lies on the straight line between its neighbours.
    Interpolate,
}

/// The terms of one model's time, as they stand in a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyTerms {
    /// How to read the staircase between its sizes.
    pub between: Between,
    /// Measured row counts, ascending, each at least 1.
    pub rows: Vec<u32>,
    /// Time of a pass over that many rows with no context, in microseconds; not falling.
    pub micros: Vec<f64>,
    /// `κ`: microseconds per context token, each sequence counted once.
    pub context_token_us: f64,
    /// `α`: microseconds per context token, counted once per query token.
    pub attended_token_us: f64,
    /// `ω`: rows that a prefill token counts as, above 0 and at most 1.
    pub prefill_row: f64,
    /// `o`: microseconds that any prefill adds.
    pub prefill_step_us: f64,
    /// `π`: microseconds per context token that a prefill token attends to.
    pub prefill_attended_us: f64,
    /// Draft model: microseconds that a drafting round adds to its calls, because it finds the
    /// target's data in the caches. Not part of [`LatencyModel::micros`].
    #[serde(default)]
    pub round_us: f64,
    /// Of a draft head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadTerms>,
}

/// What tells the time of a draft head from that of a draft model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadTerms {
    /// Most drafts of a sequence that one call makes, at least 1. Where it is more, the first call of
    /// a round makes all of them, and there is no other.
    pub drafts_per_call: u32,
    /// Microseconds to read the hidden states of a committed token, beside those of the last one of
    /// each sequence that drafts. Not part of [`LatencyModel::micros`].
    pub state_token_us: f64,
}

impl LatencyTerms {
    /// A staircase and nothing else: a time that depends on rows alone.
    pub fn staircase(between: Between, rows: &[u32], micros: &[f64]) -> LatencyTerms {
        LatencyTerms {
            between,
            rows: rows.to_vec(),
            micros: micros.to_vec(),
            context_token_us: 0.0,
            attended_token_us: 0.0,
            prefill_row: 1.0,
            prefill_step_us: 0.0,
            prefill_attended_us: 0.0,
            round_us: 0.0,
            head: None,
        }
    }

    /// Of a drafter that takes next to no time: a nanosecond a call, since no pass may be free.
    pub fn negligible() -> LatencyTerms {
        LatencyTerms::staircase(Between::Interpolate, &[1], &[1e-3])
    }
}

/// What one forward pass has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Decode and verification tokens.
    pub rows: u32,
    /// Context of the sequences behind those rows, each sequence once.
    pub context_tokens: u64,
    /// Context of the sequences behind those rows, once per row.
    pub attended_tokens: u64,
    /// Prefill or catch-up tokens.
    pub prefill_tokens: u32,
    /// Context that the prefill tokens attend to, summed over them.
    pub prefill_attended_tokens: u64,
}

/// [`LatencyTerms`] made ready: checked, and tabulated so that a look-up is one load.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyModel {
    terms: LatencyTerms,
    table: Box<[f64]>,
    beyond_us: f64,
}

impl LatencyModel {
    /// Checks and tabulates.
    ///
    /// # Errors
    /// [`ProfileError::Terms`] when the staircase is empty, out of order, falls, or when
    /// any number is negative or not finite.
    pub fn new(terms: LatencyTerms) -> Result<LatencyModel, ProfileError> {
        check(&terms).map_err(ProfileError::Terms)?;
        let beyond_us = slope_beyond(&terms);
        let table = (0..=TABLE_ROWS as u32).map(|rows| stair(&terms, beyond_us, rows)).collect();
        Ok(LatencyModel { terms, table, beyond_us })
    }

    /// The terms it was made from.
    pub fn terms(&self) -> &LatencyTerms {
        &self.terms
    }

    /// The staircase at `beside` rows and more, at least [`ROWS_MAX`] more: what any number of rows
    /// takes beside so many others. No rows take as long as one: the weights are read for it.
    ///
    /// # Panics
    /// Beside more than [`BESIDE_ROWS_MAX`] rows.
    pub fn table_from(&self, beside: usize) -> &[f64] {
        assert!(beside <= BESIDE_ROWS_MAX, "beside {beside} rows, tabulated up to {BESIDE_ROWS_MAX}");
        &self.table[beside..]
    }

    /// The staircase at `rows`.
    pub fn rows_us(&self, rows: u32) -> f64 {
        match self.table.get(rows as usize) {
            Some(&micros) => micros,
            None => self.table[TABLE_ROWS] + self.beyond_us * f64::from(rows - TABLE_ROWS as u32),
        }
    }

    /// The largest size below `rows` at which a padded batch is cheaper than one row more: the
    /// next smaller graph that saves time. 0 where none is; `None` for an interpolated model,
    /// which has no sizes.
    pub fn previous_size(&self, rows: u32) -> Option<u32> {
        if self.terms.between == Between::Interpolate {
            return None;
        }
        let sizes = &self.terms.rows[..self.terms.rows.partition_point(|&size| size < rows)];
        let steps = |size: u32| self.rows_us(size) < self.rows_us(size + 1);
        Some(sizes.iter().rev().copied().find(|&size| steps(size)).unwrap_or(0))
    }

    /// Draft calls that it takes to draft up to `drafts` tokens of each sequence.
    pub fn draft_calls(&self, drafts: u32) -> u32 {
        drafts.div_ceil(self.drafts_per_call())
    }

    /// Whether the first call of a round makes all of its drafts.
    pub fn drafts_blocks(&self) -> bool {
        self.drafts_per_call() > 1
    }

    fn drafts_per_call(&self) -> u32 {
        self.terms.head.map_or(1, |head| head.drafts_per_call)
    }

    /// Reading the hidden states of `tokens` committed tokens, beside those of the last one of each
    /// sequence that drafts, in microseconds; 0 of a drafter that reads none.
    pub fn states_us(&self, tokens: u64) -> f64 {
        self.terms.head.map_or(0.0, |head| head.state_token_us * tokens as f64)
    }

    /// Rows that prefill tokens count as.
    pub fn prefill_rows(&self, tokens: u32) -> u32 {
        prefill_rows(self.terms.prefill_row, tokens)
    }

    /// What prefill adds to a pass over `rows` decode and verification rows.
    pub fn prefill_us(&self, rows: u32, tokens: u32, attended_tokens: u64) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let more_rows = self.prefill_rows(tokens);
        self.rows_us(rows.saturating_add(more_rows)) - self.rows_us(rows)
            + self.terms.prefill_step_us
            + self.terms.prefill_attended_us * attended_tokens as f64
    }

    /// What `more_rows` cost on top of `rows` at the price of a row there, which is at most that of
    /// the mean row. On a staircase that is the slope over a tile to either side.
    pub fn marginal_us(&self, rows: u32, more_rows: u32) -> f64 {
        let all = rows.saturating_add(more_rows);
        if more_rows == 0 {
            return 0.0;
        }
        let (low, high) = (rows.max(all.saturating_sub(SLOPE_ROWS)), all.saturating_add(SLOPE_ROWS));
        let slope_us = (self.rows_us(high) - self.rows_us(low)) / f64::from(high - low);
        slope_us.min(self.rows_us(all) / f64::from(all)) * f64::from(more_rows)
    }

    /// The pass without its prefill.
    pub fn decode_us(&self, work: &Work) -> f64 {
        self.rows_us(work.rows)
            + self.terms.context_token_us * work.context_tokens as f64
            + self.terms.attended_token_us * work.attended_tokens as f64
    }

    /// The whole pass; nothing to do takes no time.
    pub fn micros(&self, work: &Work) -> f64 {
        if work.rows == 0 && work.prefill_tokens == 0 {
            return 0.0;
        }
        self.decode_us(work) + self.prefill_us(work.rows, work.prefill_tokens, work.prefill_attended_tokens)
    }
}

/// Context that `tokens` prefill tokens attend to when `done` tokens stand before them.
pub fn prefill_attended(done: u32, tokens: u32) -> u64 {
    let (done, tokens) = (u64::from(done), u64::from(tokens));
    tokens * done + tokens * (tokens + 1) / 2
}

/// Times of a pair of models on one machine, before any online correction.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// The target model.
    pub target: LatencyModel,
    /// The draft model, if there is one.
    pub draft: Option<LatencyModel>,
    /// What a step costs beside the models, in microseconds.
    pub host_us: f64,
}

fn check(terms: &LatencyTerms) -> Result<(), String> {
    let (rows, micros) = (&terms.rows, &terms.micros);
    if rows.is_empty() || rows.len() != micros.len() {
        return Err(format!("{} row counts with {} times", rows.len(), micros.len()));
    }
    if rows[0] == 0 || rows.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("row counts must ascend from at least 1".to_owned());
    }
    if micros.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err("times must not fall as rows grow".to_owned());
    }
    let slopes = [
        terms.context_token_us,
        terms.attended_token_us,
        terms.prefill_step_us,
        terms.prefill_attended_us,
        terms.round_us,
        terms.head.map_or(0.0, |head| head.state_token_us),
    ];
    if terms.head.is_some_and(|head| head.drafts_per_call == 0) {
        return Err("a draft head makes at least one draft per call".to_owned());
    }
    if !(terms.prefill_row > 0.0 && terms.prefill_row <= 1.0) {
        return Err(format!("prefill_row is {}, not above 0 and at most 1", terms.prefill_row));
    }
    if micros.iter().chain(&slopes).any(|value| !value.is_finite() || *value < 0.0) {
        return Err("times must be finite and not negative".to_owned());
    }
    if micros[0] <= 0.0 {
        return Err("a pass over one row must take time".to_owned());
    }
    Ok(())
}

/// Microseconds per row beyond the largest measured size: the mean slope over the upper
/// half of the staircase, so that one flat last step does not make rows free.
fn slope_beyond(terms: &LatencyTerms) -> f64 {
    let last = terms.rows.len() - 1;
    let from = last / 2;
    if from == last {
        return terms.micros[last] / f64::from(terms.rows[last]);
    }
    (terms.micros[last] - terms.micros[from]) / f64::from(terms.rows[last] - terms.rows[from])
}

/// Rows that `tokens` prefill tokens count as, at `prefill_row` each.
pub(super) fn prefill_rows(prefill_row: f64, tokens: u32) -> u32 {
    (prefill_row * f64::from(tokens)).ceil() as u32
}

/// The staircase at `rows`, with `beyond_us` for each row beyond its last size.
pub(super) fn stair(terms: &LatencyTerms, beyond_us: f64, rows: u32) -> f64 {
    let next = terms.rows.partition_point(|&size| size < rows);
    if next == terms.rows.len() {
        let last = next - 1;
        return terms.micros[last] + beyond_us * f64::from(rows - terms.rows[last]);
    }
    // a size has its own time to the last bit, lest a staircase made of such times should fall
    if next == 0 || terms.between == Between::Pad || terms.rows[next] == rows {
        return terms.micros[next];
    }
    let (left, right) = (terms.rows[next - 1], terms.rows[next]);
    let share = f64::from(rows - left) / f64::from(right - left);
    terms.micros[next - 1] + share * (terms.micros[next] - terms.micros[next - 1])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn of_head(drafts_per_call: u32, state_token_us: f64) -> LatencyTerms {
        let head = Some(HeadTerms { drafts_per_call, state_token_us });
        LatencyTerms { head, ..LatencyTerms::staircase(Between::Pad, &[1], &[1.0]) }
    }

    #[test]
    fn a_head_of_blocks_drafts_a_block_per_call_and_any_other_drafter_a_token() {
        let calls = |terms: LatencyTerms| {
            let model = LatencyModel::new(terms).expect("valid");
            ([0, 1, 4, 7].map(|drafts| model.draft_calls(drafts)), model.drafts_blocks(), model.states_us(3))
        };
        assert_eq!(calls(of_head(7, 2.0)), ([0, 1, 1, 1], true, 6.0));
        assert_eq!(calls(of_head(1, 0.5)), ([0, 1, 4, 7], false, 1.5));
        assert_eq!(calls(LatencyTerms::negligible()), ([0, 1, 4, 7], false, 0.0));
    }

    #[test]
    fn a_negligible_drafter_is_a_valid_model() {
        let model = LatencyModel::new(LatencyTerms::negligible()).expect("valid");
        assert!(model.decode_us(&Work { rows: 256, ..Work::default() }) < 1.0);
    }

    #[test]
    fn padding_charges_the_next_captured_size() {
        let model = LatencyModel::new(LatencyTerms::staircase(
            Between::Pad,
            &[1, 2, 4, 8],
            &[10.0, 11.0, 12.0, 20.0],
        ))
        .unwrap();
        let times: Vec<f64> = (0..=8).map(|rows| model.rows_us(rows)).collect();
        assert_eq!(times, [10.0, 10.0, 11.0, 12.0, 12.0, 20.0, 20.0, 20.0, 20.0]);
    }

    #[test]
    fn the_previous_size_is_the_last_one_before_the_time_steps() {
        let terms = |between| {
            LatencyTerms::staircase(between, &[128, 160, 192, 256, 2048], &[10.0, 11.0, 11.0, 15.0, 90.0])
        };
        let model = LatencyModel::new(terms(Between::Pad)).unwrap();
        let cases =
            [(257, 256), (256, 192), (250, 192), (193, 192), (192, 128), (129, 128), (128, 0), (0, 0)];
        for (rows, size) in cases.into_iter().chain([(3000, 2048)]) {
            assert_eq!(model.previous_size(rows), Some(size), "{rows}");
        }
        let model = LatencyModel::new(terms(Between::Interpolate)).unwrap();
        assert_eq!(model.previous_size(250), None);
    }

    #[test]
    fn interpolation_follows_the_line_between_neighbours() {
        let model =
            LatencyModel::new(LatencyTerms::staircase(Between::Interpolate, &[1, 5], &[10.0, 30.0])).unwrap();
        assert_eq!(model.rows_us(2), 15.0);
        assert_eq!(model.rows_us(4), 25.0);
    }

    #[test]
    fn a_size_between_others_has_its_own_time_to_the_last_bit() {
        // in floating point, 1/7 and what 2/3 is more than that are not 2/3
        let (rows, micros) = ([1, 3, 5], [1.0 / 7.0, 2.0 / 3.0, 2.0 / 3.0]);
        let model = LatencyModel::new(LatencyTerms::staircase(Between::Interpolate, &rows, &micros)).unwrap();
        assert_eq!(rows.map(|rows| model.rows_us(rows)), micros);
    }

    #[test]
    fn beyond_the_largest_size_and_the_table_the_slope_goes_on() {
        let model = LatencyModel::new(LatencyTerms::staircase(Between::Pad, &[1, 2, 4], &[10.0, 12.0, 20.0]))
            .unwrap();
        assert_eq!(model.rows_us(6), 28.0);
        assert_eq!(model.rows_us(9000), 20.0 + 4.0 * 8996.0);
    }

    #[test]
    fn a_single_measured_size_extrapolates_in_proportion() {
        let model = LatencyModel::new(LatencyTerms::staircase(Between::Pad, &[4], &[20.0])).unwrap();
        assert_eq!(model.rows_us(3), 20.0);
        assert_eq!(model.rows_us(8), 40.0);
    }

    #[test]
    fn all_terms_add_up_and_nothing_to_do_is_free() {
        let terms = LatencyTerms {
            context_token_us: 0.5,
            attended_token_us: 0.25,
            prefill_row: 0.75,
            prefill_step_us: 3.0,
            prefill_attended_us: 0.125,
            ..LatencyTerms::staircase(Between::Pad, &[2, 5], &[10.0, 18.0])
        };
        let model = LatencyModel::new(terms).unwrap();
        let work = Work {
            rows: 2,
            context_tokens: 8,
            attended_tokens: 16,
            prefill_tokens: 4,
            prefill_attended_tokens: prefill_attended(6, 4),
        };
        // four prefill tokens count as three rows
        assert_eq!(model.micros(&work), 18.0 + 4.0 + 4.0 + 3.0 + 34.0 * 0.125);
        assert_eq!(model.micros(&Work::default()), 0.0);
    }

    #[test]
    fn rows_beside_prefill_cost_what_they_cost_there() {
        // memory-bound up to 256 rows, then 20 us a row
        let terms = LatencyTerms::staircase(
            Between::Interpolate,
            &[1, 256, 512, 1024],
            &[5000.0, 5000.0, 10_120.0, 20_360.0],
        );
        let model = LatencyModel::new(terms).unwrap();
        let pass_us = |rows, prefill_tokens| model.micros(&Work { rows, prefill_tokens, ..Work::default() });
        assert_eq!(pass_us(128, 0) - pass_us(64, 0), 0.0);
        assert!((pass_us(128, 512) - pass_us(64, 512) - 64.0 * 20.0).abs() < 1e-6);
        assert_eq!(model.table_from(512)[64], model.rows_us(576));
        assert_eq!(model.table_from(BESIDE_ROWS_MAX).len(), ROWS_MAX + 1);
    }

    #[test]
    fn the_marginal_price_is_the_slope_there_and_at_most_the_mean() {
        let model = |micros: &[f64]| {
            let rows = [1, 256, 512, 1024];
            LatencyModel::new(LatencyTerms::staircase(Between::Interpolate, &rows, micros)).unwrap()
        };
        // 20 us a row from 256 on; 576 rows on top of 64 add less than that each
        let convex = model(&[5000.0, 6000.0, 11_120.0, 21_360.0]);
        assert!((convex.marginal_us(64, 576) - 576.0 * 20.0).abs() < 1e-6);
        assert!(convex.rows_us(640) - convex.rows_us(64) < 576.0 * 15.0);
        assert_eq!(convex.marginal_us(64, 0), 0.0);
        // so steep that the slope alone would take more than the whole pass
        let steep = model(&[1.0, 10.0, 20.0, 200_000.0]);
        assert!((steep.marginal_us(64, 576) - 576.0 * steep.rows_us(640) / 640.0).abs() < 1e-6);
    }

    #[test]
    fn terms_that_make_no_sense_are_refused() {
        let refused = [
            LatencyTerms::staircase(Between::Pad, &[], &[]),
            LatencyTerms::staircase(Between::Pad, &[1, 2], &[1.0]),
            LatencyTerms::staircase(Between::Pad, &[0, 2], &[1.0, 2.0]),
            LatencyTerms::staircase(Between::Pad, &[2, 2], &[1.0, 2.0]),
            LatencyTerms::staircase(Between::Pad, &[1, 2], &[3.0, 2.0]),
            LatencyTerms::staircase(Between::Pad, &[1], &[0.0]),
            LatencyTerms::staircase(Between::Pad, &[1], &[f64::NAN]),
            LatencyTerms { prefill_step_us: -1.0, ..LatencyTerms::staircase(Between::Pad, &[1], &[1.0]) },
            LatencyTerms { prefill_row: 0.0, ..LatencyTerms::staircase(Between::Pad, &[1], &[1.0]) },
            LatencyTerms { prefill_row: 1.1, ..LatencyTerms::staircase(Between::Pad, &[1], &[1.0]) },
            of_head(0, 1.0),
            of_head(1, -1.0),
        ];
        for terms in refused {
            assert!(LatencyModel::new(terms.clone()).is_err(), "{terms:?}");
        }
    }
}
