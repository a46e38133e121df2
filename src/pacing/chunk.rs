//! How much prefill a step takes: all there is, unless a running request would miss its TPOT
//! objective by it and the prompts can wait.
//!
//! TPOT is a mean over the whole output, so a request can bear a step that it makes up for later.
//! A request with the objective `τ` that has emitted `n` tokens since its first, `a` ago, has the
//! credit `τ·n − a`. Steps of decoding alone bring it `τ − T/E` per token, and it has some more
//! tokens to come. So the longest step that it bears is its credit, `τ` for each token of this
//! step, and what it makes up for in a part of the output to come. One that would not be within
//! its objective by the end of an average output is lost and bears anything.

use super::Pacer;
use crate::protocol::{DecodeView, PrefillView};
use crate::timing::cost_model::prefill_attended;

/// Part of a mean output within which a request must make up for a long step. Outputs end without
/// notice: with lengths spread exponentially, one in five ends sooner.
const RECOVERY_SHARE: f64 = 0.25;
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
        self.list_bearable(decoding, decode_us);
        let mut bearable = std::mem::take(&mut self.buffers.bearable_us);
        bearable.sort_unstable_by(f64::total_cmp);
        let within = |lost: usize| match bearable.get(lost) {
            Some(limit_us) => self.chunk_within(prefilling, limit_us - decode_us, all),
            None => all,
        };
        let free = within(0);
        // A TTFT objective is worth a TPOT objective: as many may be lost as are saved.
        let hurried = paces.iter().filter(|&&pace| pace > free).count();
        let chunk = if free < all && hurried > 0 {
            let needed = paces.iter().copied().max().unwrap_or(0).min(all);
            free.max(needed.min(within(hurried)))
        } else {
            free
        };
        self.buffers.bearable_us = bearable;
        chunk.max(CHUNK_FLOOR.min(all))
    }

    fn list_bearable(&mut self, decoding: &[DecodeView], decode_us: f64) {
        let tokens = self.load.tokens();
        let to_come = self.load.output_tokens().unwrap_or(FIRST_OUTPUT_TOKENS);
        let token_us = decode_us / tokens;
        let bearable_us = &mut self.buffers.bearable_us;
        bearable_us.clear();
        for row in decoding {
            let Some(tpot) = row.tpot else { continue };
            let objective_us = tpot.0 as f64;
            let emitted = f64::from(row.output_tokens.saturating_sub(1));
            let credit_us = objective_us * (emitted + tokens) - row.since_first_token.0 as f64;
            let gain_us = objective_us - token_us;
            if credit_us - decode_us + to_come * gain_us.max(0.0) >= 0.0 {
                bearable_us.push(credit_us + RECOVERY_SHARE * to_come * gain_us.max(0.0));
            }
        }
    }

    /// Most prefill tokens, at most `tokens_max`, that add no more than `budget_us` to a step.
    fn chunk_within(&self, prefilling: &[PrefillView], budget_us: f64, tokens_max: u32) -> u32 {
        let (mut fits, mut too_many) = (0, tokens_max + 1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            let prefill_us = self.time.prefill_us(middle, attended(prefilling, middle));
            if prefill_us <= budget_us { fits = middle } else { too_many = middle }
        }
        fits
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
