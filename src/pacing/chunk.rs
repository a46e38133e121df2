//! How much prefill a step takes: all there is, unless a running request would miss its TPOT
//! objective by it and the prompts can wait.
//!
//! TPOT is a mean over the whole output, so a request can bear a step that it makes up for later,
//! if its output lasts. A request with the objective `τ` that has emitted `n` tokens since its
//! first, `a` ago, has the credit `τ·n − a`. A step of length `T` that yields `E` tokens leaves it
//! `T − τ·E` more behind, and steps of decoding alone bring back `τ − T₀/E` per token. So a request
//! that is `d` behind needs `d/(τ − T₀/E)` more tokens to be within its objective again. Outputs
//! end without notice: with a mean of `N` tokens still to come, the chance that it ends before
//! that is taken as `x/(1 + x)` for `x = d/((τ − T₀/E)·N)`.
//!
//! A step that yields `E` tokens on average may yield a single one. A short output does not make up
//! for that, so it is counted as a case of its own: one token with the chance `1/E`, otherwise
//! `1 + E`, which is the mean of a geometric number of tokens above one.
//!
//! The chunk is the largest whose expected losses are negligible. If prompts would miss their
//! TTFT objectives at that pace, it may cost as many TPOT objectives as TTFT objectives it saves.

use super::Pacer;
use crate::protocol::{DecodeView, PrefillView};
use crate::timing::cost_model::prefill_attended;

/// Share of the finishing requests whose TPOT objectives prefill that could wait may cost.
/// A fifth of it made first tokens wait ten times as long near saturation (docs/benchmarks.md).
const LOSS_SHARE: f64 = 0.01;
/// Tokens that the mean pace of all requests counts as beside a request's own.
const PACE_TOKENS: f64 = 16.0;
/// Mean output before any request finished, in tokens.
const FIRST_OUTPUT_TOKENS: f64 = 64.0;
/// Least prefill of a step while a prompt waits, in tokens: guarantees progress.
pub const CHUNK_FLOOR: u32 = 16;

impl Pacer {
    /// Prefill tokens for the next step, at most `tokens_max`. `prefilling` are the admitted
    /// prompts in the order of [`rank`](Self::rank), and `paces` what prompts on time need.
    pub fn chunk(
        &mut self,
        decoding: &[DecodeView],
        prefilling: &[PrefillView],
        paces: &[u32],
        tokens_max: u32,
    ) -> u32 {
        let offered = prefilling.iter().fold(0u32, |sum, view| sum.saturating_add(view.remaining_tokens));
        let all = offered.min(tokens_max);
        if decoding.is_empty() || all == 0 {
            return all;
        }
        let decode_us = self.decode_us(decoding);
        self.list_debts(decoding, decode_us);
        // Of the requests that the step is expected to finish.
        let tokens = decoding.len() as f64 * self.load.tokens();
        let finishing = tokens / self.load.output_tokens().unwrap_or(FIRST_OUTPUT_TOKENS).max(1.0);
        let rows = self.verify_rows(decoding.len());
        let free = self.chunk_within(rows, prefilling, LOSS_SHARE * finishing, all);
        // A TTFT objective is worth a TPOT objective.
        let hurried = paces.iter().filter(|&&pace| pace > free).count();
        let chunk = if free < all && hurried > 0 {
            let needed = paces.iter().copied().max().unwrap_or(0).min(all);
            free.max(self.chunk_within(rows, prefilling, hurried as f64, needed))
        } else {
            free
        };
        chunk.max(CHUNK_FLOOR.min(all))
    }

    /// What each running request with a TPOT objective may owe after a step of decoding alone.
    fn list_debts(&mut self, decoding: &[DecodeView], decode_us: f64) {
        let tokens = self.load.tokens();
        let to_come = self.load.output_tokens().unwrap_or(FIRST_OUTPUT_TOKENS);
        let debts = &mut self.buffers.debts;
        debts.clear();
        let (ages_us, all_emitted) = decoding.iter().fold((0.0, 0.0), |(ages, emitted), row| {
            (ages + row.since_first_token.0 as f64, emitted + emitted_tokens(row))
        });
        let mean_us = if all_emitted > 0.0 { ages_us / all_emitted } else { 0.0 };
        for row in decoding {
            let Some(tpot) = row.tpot else { continue };
            let (objective_us, age_us) = (tpot.0 as f64, row.since_first_token.0 as f64);
            let emitted = emitted_tokens(row);
            // Requests differ in how many of their drafts are accepted; their pace shows it.
            let own_us = (age_us + PACE_TOKENS * mean_us) / (emitted + PACE_TOKENS);
            let slower = if mean_us > 0.0 { own_us / mean_us } else { 1.0 };
            let tokens = (tokens / slower).max(1.0);
            let recovered_us = (objective_us - decode_us / tokens) * to_come;
            for (yielded, chance) in yields(tokens) {
                let credit_us = objective_us * (emitted + yielded) - age_us;
                let owed_us = decode_us - credit_us;
                // What decoding alone does not bring back is lost whatever the step prefills.
                if recovered_us > 0.0 || owed_us < 0.0 {
                    debts.push(Debt { owed_us, recovered_us: recovered_us.max(1.0), chance });
                }
            }
        }
    }

    /// TPOT objectives, in expectation, that are missed after so much prefill.
    fn missed(&self, prefill_us: f64) -> f64 {
        self.buffers.debts.iter().map(|debt| debt.missed(prefill_us)).sum()
    }

    /// Most prefill tokens, at most `tokens_max`, that cost no more than `losses_max` TPOT
    /// objectives in expectation, beside `rows` decode and verification rows.
    fn chunk_within(&self, rows: u32, prefilling: &[PrefillView], losses_max: f64, tokens_max: u32) -> u32 {
        let missed_max = self.missed(0.0) + losses_max;
        let (mut fits, mut too_many) = (0, tokens_max + 1);
        while too_many - fits > 1 {
            let middle = if too_many > tokens_max { tokens_max } else { fits + (too_many - fits) / 2 };
            let prefill_us = self.time.prefill_us(rows, middle, attended(prefilling, middle));
            if self.missed(prefill_us) <= missed_max { fits = middle } else { too_many = middle }
        }
        fits
    }
}

fn emitted_tokens(row: &DecodeView) -> f64 {
    f64::from(row.output_tokens.saturating_sub(1))
}

/// Tokens that a step may yield to a request, and with which chance: no draft is accepted, or some
/// are. The mean is `tokens`, which is at least 1.
fn yields(tokens: f64) -> [(f64, f64); 2] {
    let single = 1.0 / tokens;
    [(1.0, single), (1.0 + tokens, 1.0 - single)]
}

/// What a running request may owe to its TPOT objective.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debt {
    /// After a step of decoding alone, in microseconds; negative: credit.
    owed_us: f64,
    /// What it would bring back in the output that is still to come.
    recovered_us: f64,
    /// How likely the step yields the tokens that this debt is based on.
    chance: f64,
}

impl Debt {
    /// Chance that this comes true and the request misses its objective after a delay:
    /// `x/(1 + x)` with `x` of the module's text.
    fn missed(self, delay_us: f64) -> f64 {
        let owed_us = (self.owed_us + delay_us).max(0.0);
        self.chance * owed_us / (owed_us + self.recovered_us)
    }
}

/// Context attended to when the first `tokens` tokens are prefilled in order.
fn attended(prefilling: &[PrefillView], tokens: u32) -> u64 {
    let mut left = tokens;
    let mut attended = 0;
    for view in prefilling {
        let chunk = left.min(view.remaining_tokens);
        attended += prefill_attended(view.done_tokens, chunk);
        left -= chunk;
        if left == 0 {
            break;
        }
    }
    attended
}
